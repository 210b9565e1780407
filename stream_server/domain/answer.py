"""What a group of subscribers has been sent of a run's outcome, and what is due next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

import msgspec

from stream_server.domain.outcome import (
    Decision,
    FailureKnown,
    ResultKnown,
    ResultVersion,
    ReturnValue,
    ReturnValues,
    WatchOptions,
    evaluate,
    select_result_tasks,
)
from stream_server.domain.prediction import UNSUCCESSFUL_STATES
from stream_server.domain.run_state import RetractionReason, RunState
from stream_server.domain.transition import RETURN_VALUE_KEY
from stream_server.protocol.frames import AnyFrame, End, Failure, Reference, Reset, Result, Snapshot

_FINAL_TASK_STATES = UNSUCCESSFUL_STATES | {"success"}

_JSON_NULL, _EMPTY_LIST = msgspec.Raw(b"null"), msgspec.Raw(b"[]")


class TrackerUpdate(NamedTuple):
    """What follows for the watchers of a question."""

    frames: list[AnyFrame]
    values_needed: tuple[str, ...] = ()
    """Tasks whose return values must be read and given to `Answer.receive`."""


@dataclass(slots=True)
class OutcomeTracker:
    """What the watchers of one question have been told."""

    options: WatchOptions
    clear_number: int = 0
    """How often the run had been cleared when the watchers were told last."""

    sent_outcome: Result | Failure | None = None
    has_ended: bool = False
    _sent_versions: tuple[ResultVersion, ...] = ()
    """Of what the told result was made."""

    def initial_frames(self, run: RunState) -> list[AnyFrame]:
        """Return what a new watcher must see first: all that is known, all that was said, and all that was told."""
        said = run.output.frames if self.options.include_output else ()
        told = () if self.sent_outcome is None else (self.sent_outcome,)
        return [self._snapshot(run), *said, *told]

    def update(self, run: RunState, unsaid: RetractionReason | None = None) -> TrackerUpdate:
        """Return what follows from the state of the run as it is now.

        Args:
            run: The run.
            unsaid: Why something that a task has said is worth nothing any more.
        """
        if self.has_ended:
            return TrackerUpdate([])
        verdict = evaluate(run, self.options)
        frames = self._retract_outdated(run, verdict, unsaid)
        if self.sent_outcome is None:
            if isinstance(verdict, ResultKnown):
                return TrackerUpdate(frames, verdict.task_ids)
            if isinstance(verdict, FailureKnown):
                self.sent_outcome = _failure_frame(run, verdict)
                frames.append(self.sent_outcome)
        return TrackerUpdate(frames + self._end_frames(run))

    def add_values(self, run: RunState, task_ids: Collection[str], values: ReturnValues) -> TrackerUpdate:
        """Go on with the return values of some tasks, read after a step wanted them."""
        if not self.has_ended and self.sent_outcome is None:
            for task_id in task_ids:
                for map_index, instance in run.tasks[task_id].items():
                    if instance.state == "running" and (task_id, map_index) not in values:
                        run.discard_push(task_id, map_index)
            verdict = evaluate(run, self.options)
            if isinstance(verdict, ResultKnown) and set(verdict.task_ids) <= set(task_ids):
                self.sent_outcome, self._sent_versions = _result_frame(run, verdict, values), verdict.versions
                return TrackerUpdate([self.sent_outcome, *self._end_frames(run)])
        return self.update(run)

    def _retract_outdated(self, run: RunState, verdict: Decision, unsaid: RetractionReason | None) -> list[AnyFrame]:
        cleared = run.info.clear_number > self.clear_number
        self.clear_number = run.info.clear_number
        if cleared or not self._is_still_valid(verdict):
            reason = "cleared" if cleared else self._reset_reason(run)
            self.sent_outcome = None
        elif unsaid is not None and self.options.include_output:
            reason = unsaid
        else:
            return []
        return [Reset(dag_id=run.key.dag_id, run_id=run.key.run_id, reason=reason), *self.initial_frames(run)]

    def _is_still_valid(self, verdict: Decision) -> bool:
        """Tell whether what was told is still so."""
        if isinstance(self.sent_outcome, Result):
            return isinstance(verdict, ResultKnown) and verdict.versions == self._sent_versions
        return self.sent_outcome is None or isinstance(verdict, FailureKnown)

    def _reset_reason(self, run: RunState) -> Literal["cleared", "retried", "revoked"]:
        if isinstance(self.sent_outcome, Failure) and self.sent_outcome.task_id is not None:
            return self._failure_reset_reason(run, self.sent_outcome)
        states: set[str | None] = set()
        for task_id in select_result_tasks(run, self.options):
            if task_id in run.tasks:
                states |= run.tasks[task_id].by_state.keys()
        if states & {None, "restarting"}:
            return "cleared"
        tried_again = any(run.tasks[part.task_id].tries > part.tries for part in self._sent_versions)
        return "retried" if "up_for_retry" in states or tried_again else "revoked"

    def _failure_reset_reason(self, run: RunState, told: Failure) -> Literal["cleared", "revoked"]:
        """Tell what became of the instance that was blamed: one that had ended tries again only if it is cleared."""
        assert told.task_id is not None, "the failure of a task names it"
        instance = run.tasks[told.task_id].get(told.map_index if told.map_index is not None else -1)
        marked = (
            instance is not None and instance.state in _FINAL_TASK_STATES and instance.try_number == told.try_number
        )
        return "revoked" if marked else "cleared"

    def _end_frames(self, run: RunState) -> list[AnyFrame]:
        told_enough = self.sent_outcome is not None and self.options.until == "result"
        if not told_enough and not run.has_ended:
            return []
        self.has_ended = True
        outcome: Literal["result", "failure", "none"] = "none"
        if self.sent_outcome is not None:
            outcome = "result" if isinstance(self.sent_outcome, Result) else "failure"
        state = None if run.is_deleted else run.info.state
        return [End(dag_id=run.key.dag_id, run_id=run.key.run_id, state=state, outcome=outcome)]

    def _snapshot(self, run: RunState) -> Snapshot:
        return run.snapshot(select_result_tasks(run, self.options))


def _failure_frame(run: RunState, failed: FailureKnown) -> Failure:
    return Failure(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        reason=failed.reason,
        task_id=failed.task_id,
        map_index=failed.map_index,
        try_number=failed.try_number,
        state=failed.state,
        predicted=failed.predicted,
        seq=failed.source.seq,
        at=failed.source.at,
    )


def _result_frame(run: RunState, answered: ResultKnown, values: ReturnValues) -> Result:
    results: dict[str, msgspec.Raw] = {}
    references: dict[str, Reference] = {}
    for task_id in answered.task_ids:
        indexes = sorted(index for index, instance in run.tasks[task_id].items() if instance.state != "removed")
        found = [values.get((task_id, index)) for index in indexes]
        if any(value is not None and value.json is None for value in found):
            size = sum(value.bytes for value in found if value is not None)
            references[task_id] = Reference(href=_xcom_href(run, task_id, indexes), bytes=size)
        elif run.is_expanded_to_nothing(task_id):
            results[task_id] = _EMPTY_LIST
        elif indexes == [-1]:
            results[task_id] = _raw_json(found[0])
        else:
            results[task_id] = msgspec.Raw(b"[%b]" % b",".join(bytes(_raw_json(value)) for value in found))
    return Result(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        results=results,
        references=references,
        seq=answered.source.seq,
        at=answered.source.at,
    )


def _raw_json(value: ReturnValue | None) -> msgspec.Raw:
    return _JSON_NULL if value is None or value.json is None else msgspec.Raw(value.json.encode())


def _xcom_href(run: RunState, task_id: str, indexes: list[int]) -> str:
    """Return where Airflow's REST API has a value, or those of a mapped task."""
    path = (
        f"/api/v2/dags/{quote(run.key.dag_id, safe='')}/dagRuns/{quote(run.key.run_id, safe='')}"
        f"/taskInstances/{quote(task_id, safe='')}/xcomEntries"
    )
    return f"{path}/{RETURN_VALUE_KEY}" if indexes == [-1] else path
