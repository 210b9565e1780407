"""How a run ends for the caller: a result, or a failure.

`judge` is the rule: a pure function of what is known of the run and of what was asked. `Answer` remembers what the
watchers of one question have been told, and says what they must be told next. Neither imports any I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

import msgspec

from stream_server.frames import AnyFrame, End, Failure, Reference, Reset, Result, Snapshot
from stream_server.run_state import Instance, Origin, RunState
from stream_server.transition import RETURN_VALUE

_BAD = frozenset({"failed", "upstream_failed", "skipped", "removed"})
"""States in which a task instance has ended without a value."""

_NULL = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller wants to know of a run."""

    results: tuple[str, ...] = ()
    """Tasks whose return values are wanted; empty for those that the DAG's author meant."""

    until: Literal["result", "run"] = "result"
    """Whether the stream ends with the outcome, or goes on to the end of the run."""


class Value(NamedTuple):
    """A return value in the database."""

    bytes: int
    """Size as JSON text."""

    json: str | None
    """The JSON text; `None` where it is too large to be sent."""


Values = Mapping[tuple[str, int], Value]
"""Return values by task and `map_index`; what is not in it does not exist."""


class Part(NamedTuple):
    """The answer of one task instance."""

    task_id: str
    map_index: int
    try_number: int
    origin: Origin


class Pending(NamedTuple):
    """Nothing is certain yet."""


class Answered(NamedTuple):
    """Every result task has answered."""

    task_ids: tuple[str, ...]
    origin: Origin
    parts: frozenset[Part]
    """By what each instance answered; another answer has others."""


class Failed(NamedTuple):
    """The answer will not come."""

    reason: str
    origin: Origin
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None


Verdict = Pending | Answered | Failed


def result_tasks(run: RunState, question: Question) -> tuple[str, ...]:
    """Tell which tasks answer: those the caller names, those the author marked, or the only leaf."""
    if question.results:
        return question.results
    if run.native_results:
        return tuple(sorted(run.native_results))
    if run.graph is not None and run.graph.only_leaf is not None:
        return (run.graph.only_leaf,)
    return ()


def judge(run: RunState, question: Question) -> Verdict:
    """Tell what is certain about the answer to a question."""
    if run.deleted:
        return Failed("run_deleted", run.changed)
    tasks = result_tasks(run, question)
    failed = _first_failed(run, tasks) if tasks else _failed_leaf(run)
    if failed is not None:
        return failed
    answered = _answered(run, tasks)
    if answered is not None:
        return answered
    if run.run.state == "failed":
        return Failed("run_failed", run.changed, state="failed")
    return Pending()


def _first_failed(run: RunState, tasks: tuple[str, ...]) -> Failed | None:
    for task_id in tasks:
        instances = run.tasks.get(task_id, {})
        failed = [index for index, instance in instances.items() if instance.state in _BAD]
        # Indexes beyond the length of a shrunk mapping are removed, and missed by nobody.
        if len(failed) < len(instances):
            failed = [index for index in failed if instances[index].state != "removed"]
        if failed:
            return _failed_task(task_id, min(failed), instances[min(failed)])
    return None


def _failed_leaf(run: RunState) -> Failed | None:
    if run.graph is None:
        return None
    for task_id in sorted(run.graph.effective_leaves):
        instances = run.tasks.get(task_id, {})
        failed = [index for index, one in instances.items() if one.state in {"failed", "upstream_failed"}]
        if failed:
            return _failed_task(task_id, min(failed), instances[min(failed)])
    return None


def _failed_task(task_id: str, map_index: int, instance: Instance) -> Failed:
    return Failed(
        reason=f"task_{instance.state}",
        origin=instance.changed,
        task_id=task_id,
        map_index=map_index,
        try_number=instance.try_number,
        state=instance.state,
    )


def _answered(run: RunState, tasks: tuple[str, ...]) -> Answered | None:
    """Return the answer of all instances of all tasks, or `None` while one is missing."""
    parts: list[Part] = []
    for task_id in tasks:
        before = len(parts)
        for map_index, instance in run.tasks.get(task_id, {}).items():
            if instance.state == "removed":
                continue
            origin = _answered_by(instance)
            if origin is None:
                return None
            parts.append(Part(task_id, map_index, instance.try_number, origin))
        if len(parts) == before:
            return None
    if not parts:
        return None
    last = max((part.origin for part in parts), key=lambda origin: origin.seq or 0)
    return Answered(tasks, last, frozenset(parts))


def _answered_by(instance: Instance) -> Origin | None:
    if instance.state == "running":
        return instance.pushed
    if instance.state == "success":
        # A task that returned `None` pushes nothing: its success is the answer.
        return instance.pushed or instance.changed
    return None


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
    _parts: frozenset[Part] = frozenset()
    """Of what the told result was made."""

    def open(self, run: RunState) -> list[AnyFrame]:
        """Return what a new watcher must see first: all that is known, and all that was told."""
        snapshot = self._snapshot(run)
        return [snapshot] if self.told is None else [snapshot, self.told]

    def advance(self, run: RunState) -> Step:
        """Return what follows from the state of the run as it is now."""
        if self.ended:
            return Step([])
        verdict = judge(run, self.question)
        frames: list[AnyFrame] = list(self._take_back(run, verdict))
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

    def _take_back(self, run: RunState, verdict: Verdict) -> list[Reset | Snapshot]:
        cleared = run.run.clear_number > self.clear_number
        self.clear_number = run.run.clear_number
        if not cleared and self._stands(verdict):
            return []
        reason = "cleared" if cleared else self._why_revoked(run)
        self.told = None
        return [Reset(dag_id=run.key.dag_id, run_id=run.key.run_id, reason=reason), self._snapshot(run)]

    def _stands(self, verdict: Verdict) -> bool:
        """Tell whether what was told is still so."""
        if isinstance(self.told, Result):
            return isinstance(verdict, Answered) and verdict.parts == self._parts
        return self.told is None or isinstance(verdict, Failed)

    def _why_revoked(self, run: RunState) -> Literal["cleared", "retried", "revoked"]:
        states = {
            instance.state
            for task_id in result_tasks(run, self.question)
            for instance in run.tasks.get(task_id, {}).values()
        }
        if states & {None, "restarting"}:
            return "cleared"
        return "retried" if "up_for_retry" in states or self._tried_again(run) else "revoked"

    def _tried_again(self, run: RunState) -> bool:
        return any(
            instance.try_number > part.try_number
            for part in self._parts
            if (instance := run.tasks[part.task_id].get(part.map_index)) is not None
        )

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
