"""What a group of subscribers has been sent of a run's outcome, and what is due next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

import msgspec

from stream_server.domain.outcome import Answered, Failed, Part, Question, Value, Values, Verdict, judge, result_tasks
from stream_server.domain.prediction import BAD
from stream_server.domain.run_state import RunState, Unsaid
from stream_server.domain.transition import RETURN_VALUE
from stream_server.protocol.frames import AnyFrame, End, Failure, Reference, Reset, Result, Snapshot

_ENDED = BAD | {"success"}

_NULL, _NOTHING = msgspec.Raw(b"null"), msgspec.Raw(b"[]")


class Step(NamedTuple):
    """What follows for the watchers of a question."""

    frames: list[AnyFrame]
    wanted: tuple[str, ...] = ()
    """Tasks whose return values must be read and given to `Answer.receive`."""


@dataclass(slots=True)
class Answer:
    """What the watchers of one question have been told."""

    question: Question
    clear_number: int = 0
    """How often the run had been cleared when the watchers were told last."""

    told: Result | Failure | None = None
    ended: bool = False
    _parts: tuple[Part, ...] = ()
    """Of what the told result was made."""

    def open(self, run: RunState) -> list[AnyFrame]:
        """Return what a new watcher must see first: all that is known, all that was said, and all that was told."""
        said = run.output.frames if self.question.output else ()
        told = () if self.told is None else (self.told,)
        return [self._snapshot(run), *said, *told]

    def advance(self, run: RunState, unsaid: Unsaid | None = None) -> Step:
        """Return what follows from the state of the run as it is now.

        Args:
            run: The run.
            unsaid: Why something that a task has said is worth nothing any more.
        """
        if self.ended:
            return Step([])
        verdict = judge(run, self.question)
        frames = self._take_back(run, verdict, unsaid)
        if self.told is None:
            if isinstance(verdict, Answered):
                return Step(frames, verdict.task_ids)
            if isinstance(verdict, Failed):
                self.told = _failure(run, verdict)
                frames.append(self.told)
        return Step(frames + self._end(run))

    def receive(self, run: RunState, task_ids: Collection[str], values: Values) -> Step:
        """Go on with the return values of some tasks, read after a step wanted them."""
        if not self.ended and self.told is None:
            for task_id in task_ids:
                for map_index, instance in run.tasks[task_id].items():
                    if instance.state == "running" and (task_id, map_index) not in values:
                        run.forget_push(task_id, map_index)
            verdict = judge(run, self.question)
            if isinstance(verdict, Answered) and set(verdict.task_ids) <= set(task_ids):
                self.told, self._parts = _result(run, verdict, values), verdict.parts
                return Step([self.told, *self._end(run)])
        return self.advance(run)

    def _take_back(self, run: RunState, verdict: Verdict, unsaid: Unsaid | None) -> list[AnyFrame]:
        cleared = run.run.clear_number > self.clear_number
        self.clear_number = run.run.clear_number
        if cleared or not self._stands(verdict):
            reason = "cleared" if cleared else self._why_revoked(run)
            self.told = None
        elif unsaid is not None and self.question.output:
            reason = unsaid
        else:
            return []
        return [Reset(dag_id=run.key.dag_id, run_id=run.key.run_id, reason=reason), *self.open(run)]

    def _stands(self, verdict: Verdict) -> bool:
        """Tell whether what was told is still so."""
        if isinstance(self.told, Result):
            return isinstance(verdict, Answered) and verdict.parts == self._parts
        return self.told is None or isinstance(verdict, Failed)

    def _why_revoked(self, run: RunState) -> Literal["cleared", "retried", "revoked"]:
        if isinstance(self.told, Failure) and self.told.task_id is not None:
            return self._why_not_failed(run, self.told)
        states: set[str | None] = set()
        for task_id in result_tasks(run, self.question):
            if task_id in run.tasks:
                states |= run.tasks[task_id].by_state.keys()
        if states & {None, "restarting"}:
            return "cleared"
        tried_again = any(run.tasks[part.task_id].tries > part.tries for part in self._parts)
        return "retried" if "up_for_retry" in states or tried_again else "revoked"

    def _why_not_failed(self, run: RunState, told: Failure) -> Literal["cleared", "revoked"]:
        """Tell what became of the instance that was blamed: one that had ended tries again only if it is cleared."""
        assert told.task_id is not None, "the failure of a task names it"
        instance = run.tasks[told.task_id].get(told.map_index if told.map_index is not None else -1)
        marked = instance is not None and instance.state in _ENDED and instance.try_number == told.try_number
        return "revoked" if marked else "cleared"

    def _end(self, run: RunState) -> list[AnyFrame]:
        told_enough = self.told is not None and self.question.until == "result"
        if not told_enough and not run.final:
            return []
        self.ended = True
        outcome: Literal["result", "failure", "none"] = "none"
        if self.told is not None:
            outcome = "result" if isinstance(self.told, Result) else "failure"
        state = None if run.deleted else run.run.state
        return [End(dag_id=run.key.dag_id, run_id=run.key.run_id, state=state, outcome=outcome)]

    def _snapshot(self, run: RunState) -> Snapshot:
        return run.snapshot(result_tasks(run, self.question))


def _failure(run: RunState, failed: Failed) -> Failure:
    return Failure(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        reason=failed.reason,
        task_id=failed.task_id,
        map_index=failed.map_index,
        try_number=failed.try_number,
        state=failed.state,
        predicted=failed.predicted,
        seq=failed.origin.seq,
        at=failed.origin.at,
    )


def _result(run: RunState, answered: Answered, values: Values) -> Result:
    results: dict[str, msgspec.Raw] = {}
    references: dict[str, Reference] = {}
    for task_id in answered.task_ids:
        indexes = sorted(index for index, instance in run.tasks[task_id].items() if instance.state != "removed")
        found = [values.get((task_id, index)) for index in indexes]
        if any(value is not None and value.json is None for value in found):
            size = sum(value.bytes for value in found if value is not None)
            references[task_id] = Reference(href=_href(run, task_id, indexes), bytes=size)
        elif run.is_expanded_to_nothing(task_id):
            results[task_id] = _NOTHING
        elif indexes == [-1]:
            results[task_id] = _raw(found[0])
        else:
            results[task_id] = msgspec.Raw(b"[%b]" % b",".join(bytes(_raw(value)) for value in found))
    return Result(
        dag_id=run.key.dag_id,
        run_id=run.key.run_id,
        results=results,
        references=references,
        seq=answered.origin.seq,
        at=answered.origin.at,
    )


def _raw(value: Value | None) -> msgspec.Raw:
    return _NULL if value is None or value.json is None else msgspec.Raw(value.json.encode())


def _href(run: RunState, task_id: str, indexes: list[int]) -> str:
    """Return where Airflow's REST API has a value, or those of a mapped task."""
    path = (
        f"/api/v2/dags/{quote(run.key.dag_id, safe='')}/dagRuns/{quote(run.key.run_id, safe='')}"
        f"/taskInstances/{quote(task_id, safe='')}/xcomEntries"
    )
    return f"{path}/{RETURN_VALUE}" if indexes == [-1] else path
