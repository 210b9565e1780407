"""What a group of subscribers was sent of a run's outcome, and what to send next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

import msgspec

from stream_server.domain.evidence import FAILED_STATES
from stream_server.domain.interruption import is_expanded_to_nothing
from stream_server.domain.mapped_result import count_expected_results
from stream_server.domain.outcome import (
    Decision,
    FailureKnown,
    NoneKnown,
    ResultKnown,
    ResultVersion,
    ReturnValue,
    ReturnValues,
    WatchOptions,
    evaluate,
    select_result_tasks,
)
from stream_server.domain.prediction import END_OF_STATE
from stream_server.domain.run_state import RetractionReason, RunState
from stream_server.domain.transition import RETURN_VALUE_KEY
from stream_server.protocol.cursor import SentOutcome
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import AnyFrame, End, Failure, Reset, Result, Snapshot

_JSON_NULL, _EMPTY_LIST = msgspec.Raw(b"null"), msgspec.Raw(b"[]")


@dataclass(slots=True)
class OutcomeTracker:
    """What the subscribers with the same options were sent of the outcome of a run."""

    options: WatchOptions
    clear_number: int = 0
    """Clear number of the run at the last update."""

    sent_outcome: Result | Failure | None = None
    """`None` also if the subscribers got the result on earlier connections (`assume_result`)."""

    sent_end: End | None = None
    values_needed: frozenset[str] = frozenset()
    """Tasks whose return values must be passed to `add_values` before there is more to send."""

    result_versions: tuple[ResultVersion, ...] = ()
    """Of the result that the subscribers know; empty if they know none."""

    @property
    def has_ended(self) -> bool:
        return self.sent_end is not None

    @property
    def known_outcome(self) -> SentOutcome | None:
        """Which kind of outcome the subscribers know."""
        if self.result_versions:
            return "result"
        return None if self.sent_outcome is None else "failure"

    def assume_result(self, run: RunState) -> None:
        """Start with subscribers that got the current result on earlier connections."""
        decision = evaluate(run, self.options)
        assert isinstance(decision, ResultKnown), "a client without the current result gets a reset"
        self.result_versions = decision.versions

    def restart(self, run: RunState) -> None:
        """Start again, because the subscribers are about to get a `reset` frame."""
        self.clear_number = run.info.clear_number
        self.sent_outcome, self.sent_end, self.result_versions = None, None, ()
        self.values_needed = frozenset()

    def initial_frames(self, run: RunState) -> list[AnyFrame]:
        """Return the first frames for a new subscriber: the snapshot, the output so far, and what was sent last."""
        output = run.output.frames if self.options.include_output else ()
        waiting = () if run.waiting is None else (run.waiting,)
        return [self._snapshot(run), *waiting, *run.requests.frames(), *output, *self.last_frames()]

    def last_frames(self, known: SentOutcome | None = None) -> list[AnyFrame]:
        """Return the outcome and the `end`, if they were sent. The outcome is left out for a subscriber that has it."""
        last = (self.sent_outcome if known is None else None, self.sent_end)
        return [frame for frame in last if frame is not None]

    def update(self, run: RunState, retraction: RetractionReason | None = None) -> list[AnyFrame]:
        """Return what to send because of a change of the run.

        Args:
            run: The run after the change.
            retraction: Why output of a task is no longer valid, if the change retracts any.
        """
        self.values_needed = frozenset()
        if self.sent_end is not None:
            return []
        is_failure_kept = self._is_named_instance_failed(run)
        decision = evaluate(run, self.options, needs_cause=not is_failure_kept)
        frames = self._retract_outdated(run, decision, retraction)
        if is_failure_kept and self.known_outcome is None:
            decision = evaluate(run, self.options)
        if self.known_outcome is None:
            if isinstance(decision, ResultKnown):
                self.values_needed = frozenset(decision.task_ids)
                return frames
            if isinstance(decision, FailureKnown):
                self.sent_outcome = _failure_frame(run, decision)
                frames.append(self.sent_outcome)
        return frames + self._end_frames(run, decision)

    def add_values(self, run: RunState, task_ids: Collection[str], values: ReturnValues) -> list[AnyFrame]:
        """Return what to send after the return values of some tasks were read."""
        if self.sent_end is None and self.known_outcome is None:
            for task_id in task_ids:
                running = run.tasks[task_id].by_state.get("running", ())
                for map_index in [one for one in running if (task_id, one) not in values]:
                    run.discard_push(task_id, map_index)
            decision = evaluate(run, self.options)
            if isinstance(decision, ResultKnown) and set(decision.task_ids) <= set(task_ids):
                self.sent_outcome, self.result_versions = (
                    _result_frame(run, decision, values, self.options.url_prefix),
                    decision.versions,
                )
                self.values_needed = frozenset()
                return [self.sent_outcome, *self._end_frames(run, decision)]
        return self.update(run)

    def _retract_outdated(
        self, run: RunState, decision: Decision, retraction: RetractionReason | None
    ) -> list[AnyFrame]:
        """Return a reset and the frames that replace what was sent, if the outcome or output is no longer valid."""
        is_cleared = run.info.clear_number > self.clear_number
        self.clear_number = run.info.clear_number
        if is_cleared or not self._is_still_valid(run, decision):
            reason = "cleared" if is_cleared else self._reset_reason(run)
            self.sent_outcome, self.result_versions = None, ()
        elif retraction is not None and self.options.include_output:
            reason = retraction
            if self.sent_outcome is None:
                # After the reset the subscribers do not know the result of earlier connections any more.
                self.result_versions = ()
        else:
            return []
        return [Reset(dag_id=run.key.dag_id, run_id=run.key.run_id, reason=reason), *self.initial_frames(run)]

    def _is_still_valid(self, run: RunState, decision: Decision) -> bool:
        if self.result_versions:
            return isinstance(decision, ResultKnown) and decision.versions == self.result_versions
        sent = self.sent_outcome
        if not isinstance(sent, Failure):
            return True
        if not isinstance(decision, FailureKnown):
            return False
        if sent.task_id is None or _failed_instance(sent) == _failed_instance(decision):
            return True
        # Others may fail later, but the failure names this instance as long as it has failed.
        return self._is_named_instance_failed(run)

    def _is_named_instance_failed(self, run: RunState) -> bool:
        """Whether a failure was sent that names an instance, and that is still in a failed state."""
        sent = self.sent_outcome
        if not isinstance(sent, Failure) or sent.task_id is None:
            return False
        if not run.iterations.is_current(sent.task_id, sent.iteration):
            return False
        instance = run.tasks[sent.task_id].get(sent.map_index if sent.map_index is not None else -1)
        return instance is not None and instance.state in {*FAILED_STATES, "removed"}

    def _reset_reason(self, run: RunState) -> Literal["cleared", "retried", "revoked"]:
        if isinstance(self.sent_outcome, Failure) and self.sent_outcome.task_id is not None:
            return self._failure_reset_reason(run, self.sent_outcome)
        states: set[str | None] = set()
        for task_id in select_result_tasks(run, self.options):
            if task_id in run.tasks:
                states |= run.tasks[task_id].by_state.keys()
        if states & {None, "restarting"}:
            return "cleared"
        is_new_try = any(run.tasks[version.task_id].tries > version.tries for version in self.result_versions)
        return "retried" if "up_for_retry" in states or is_new_try else "revoked"

    def _failure_reset_reason(self, run: RunState, failure: Failure) -> Literal["cleared", "revoked"]:
        """Return why a failure is no longer valid. An instance that has ended starts a new try only if cleared."""
        assert failure.task_id is not None, "the failure of a task names it"
        instance = run.tasks[failure.task_id].get(failure.map_index if failure.map_index is not None else -1)
        is_marked = (
            instance is not None and instance.state in END_OF_STATE and instance.try_number == failure.try_number
        )
        return "revoked" if is_marked else "cleared"

    def _end_frames(self, run: RunState, decision: Decision) -> list[AnyFrame]:
        """Return the `end` frame if nothing can follow, else none."""
        is_complete = self.known_outcome is not None and self.options.until == "result"
        if not is_complete and not run.has_ended:
            return []
        missing = decision if self.known_outcome is None and isinstance(decision, NoneKnown) else None
        self.sent_end = End(
            dag_id=run.key.dag_id,
            run_id=run.key.run_id,
            state=None if run.is_deleted else run.info.state,
            outcome=self.known_outcome or "none",
            reason=None if missing is None else missing.reason,
            task_id=None if missing is None else missing.task_id,
        )
        return [self.sent_end]

    def _snapshot(self, run: RunState) -> Snapshot:
        return run.snapshot(select_result_tasks(run, self.options))


def _failed_instance(failure: Failure | FailureKnown) -> tuple[str | None, int | None, int | None]:
    return failure.task_id, failure.map_index, failure.iteration


def _failure_frame(run: RunState, failure: FailureKnown) -> Failure:
    return Failure(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        reason=failure.reason,
        task_id=failure.task_id,
        map_index=failure.map_index,
        try_number=failure.try_number,
        state=failure.state,
        iteration=failure.iteration,
        predicted=failure.predicted,
        seq=failure.source.seq,
        at=failure.source.at,
    )


def _result_frame(run: RunState, result: ResultKnown, values: ReturnValues, url_prefix: str) -> Result:
    results: dict[str, msgspec.Raw] = {}
    references: dict[str, Reference] = {}
    map_indexes: dict[str, list[int]] = {}
    for task_id in result.task_ids:
        instances = run.tasks[task_id]
        indexes = sorted(instances.indexes_with_result)
        found = [values.get((task_id, index)) for index in indexes]
        if any(value is not None and value.json is None for value in found):
            size = sum(value.bytes for value in found if value is not None)
            references[task_id] = Reference(href=url_prefix + _xcom_href(run, task_id, indexes), bytes=size)
        elif is_expanded_to_nothing(run, task_id):
            results[task_id] = _EMPTY_LIST
        elif indexes == [-1]:
            results[task_id] = _raw_json(found[0])
        else:
            texts = ["null" if value is None or value.json is None else value.json for value in found]
            results[task_id] = msgspec.Raw(f"[{','.join(texts)}]".encode())
            # An index is missing if its instance was skipped, or was deleted.
            if len(indexes) < count_expected_results(instances) or indexes[-1] >= len(indexes):
                map_indexes[task_id] = indexes
    return Result(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        results=results,
        references=references,
        map_indexes=map_indexes,
        seq=result.source.seq,
        at=result.source.at,
    )


def _raw_json(value: ReturnValue | None) -> msgspec.Raw:
    return _JSON_NULL if value is None or value.json is None else msgspec.Raw(value.json.encode())


def _xcom_href(run: RunState, task_id: str, indexes: list[int]) -> str:
    """Return the path of a return value in Airflow's REST API, or of all XComs of a task that is mapped, or in a loop.

    Airflow refuses the shorter path with 409 for a task in a loop.
    """
    path = (
        f"/api/v2/dags/{quote(run.key.dag_id, safe='')}/dagRuns/{quote(run.key.run_id, safe='')}"
        f"/taskInstances/{quote(task_id, safe='')}/xcomEntries"
    )
    return f"{path}/{RETURN_VALUE_KEY}" if indexes == [-1] and run.iterations.newest(task_id) is None else path
