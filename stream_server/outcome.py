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

from stream_server.blame import culprit
from stream_server.frames import AnyFrame, End, Failure, Reference, Reset, Result, Snapshot
from stream_server.native_marks import are_complete, decide_result, leave_out_skipped, marked_tasks
from stream_server.prediction import BAD, Forecast
from stream_server.run_state import Origin, RunState, Unsaid
from stream_server.transition import RETURN_VALUE
from stream_server.trigger_rules import K

_ENDED = BAD | {"success"}

_NULL, _NOTHING = msgspec.Raw(b"null"), msgspec.Raw(b"[]")


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller wants to know of a run."""

    results: tuple[str, ...] = ()
    """Tasks whose return values are wanted; empty for those that the DAG's author meant."""

    until: Literal["result", "run"] = "result"
    """Whether the stream ends with the outcome, or goes on to the end of the run."""

    confirm: Literal["push", "success"] = "push"
    """Whether a result is told when it is pushed, or when its task has succeeded as well."""

    withheld: bool = False
    """Whether the caller may not read return values: he is told that there is a result, and not what it is."""

    output: bool = True
    """Whether what running tasks say is told, too."""


class Value(NamedTuple):
    """A return value in the database."""

    bytes: int
    """Size as JSON text."""

    json: str | None
    """The JSON text; `None` where it is too large to be sent."""


Values = Mapping[tuple[str, int], Value]
"""Return values by task and `map_index`; what is not in it does not exist."""


class Part(NamedTuple):
    """The answer of one task."""

    task_id: str
    answers: int
    """How often its answer had changed."""

    tries: int


class Pending(NamedTuple):
    """Nothing is certain yet."""


class Answered(NamedTuple):
    """Every result task has answered."""

    task_ids: tuple[str, ...]
    origin: Origin
    parts: tuple[Part, ...]
    """By what each task answered; another answer has others."""


class Failed(NamedTuple):
    """The answer will not come, because of the task instance that is named."""

    reason: str
    origin: Origin
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    predicted: bool = False
    """Whether what makes it certain is still to be written by Airflow."""


Verdict = Pending | Answered | Failed


def result_tasks(run: RunState, question: Question) -> tuple[str, ...]:
    """Return the tasks that answer, as far as they are known.

    They are those that the caller names; else those that the author marked so that Airflow serialises it; else those
    that bear Airflow 3.3's own mark; else the only leaf.
    """
    if question.results:
        return question.results
    if run.graph is not None and run.graph.marked:
        return tuple(sorted(run.graph.marked))
    if marked := marked_tasks(run):
        return tuple(sorted(marked))
    return (run.graph.only_leaf,) if run.graph is not None and run.graph.only_leaf is not None else ()


def judge(run: RunState, question: Question) -> Verdict:
    """Tell what is certain about the answer to a question."""
    if run.deleted:
        return Failed("run_deleted", run.changed)
    tasks = result_tasks(run, question)
    waits_for_end = False
    if not question.results and decide_result(run):
        remaining = leave_out_skipped(run, tasks)
        waits_for_end = not are_complete(run)
        if waits_for_end and run.run.state != "success":
            return _judge_incomplete(run, remaining)
        tasks = remaining or tasks
    failed = _failed(run, tasks) if tasks else _failed_leaf(run)
    if failed is not None:
        return failed
    answered = _answered(run, tasks, question)
    if answered is not None:
        return answered._replace(origin=run.changed) if waits_for_end else answered
    if run.run.state == "failed":
        return Failed("run_failed", run.changed, state="failed")
    return Pending()


def _judge_incomplete(run: RunState, tasks: tuple[str, ...]) -> Failed | Pending:
    """Judge a run that has not succeeded, while more tasks may be result tasks. If the run fails, the answer does."""
    failed = _failed(run, tasks)
    if failed is None and (run.final or run.earlier_marks is None):
        failed = _failed_leaf(run)
    if failed is None and run.final:
        return Failed("run_failed", run.changed, state="failed")
    return failed or Pending()


def _failed(run: RunState, tasks: tuple[str, ...]) -> Failed | None:
    """Return the failure of the first result task that has ended without a value, or else is certain to."""
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        if instances is None or run.is_expanded_to_nothing(task_id):
            continue
        # Indexes beyond the length of a shrunk mapping are removed, and missed by nobody.
        missed = BAD - {"removed"} if instances.wanted() else BAD
        failed = [min(found) for state, found in instances.by_state.items() if state in missed]
        if failed:
            return _blame(run, task_id, min(failed), instances[min(failed)].changed)
    forecast = run.forecast()
    if forecast is not None:
        for task_id in tasks:
            if (doomed := forecast.doomed(task_id)) and not _may_come_to_nothing(run, forecast, task_id):
                return _blame(run, task_id, min(doomed))
    return None


def _may_come_to_nothing(run: RunState, forecast: Forecast, task_id: str) -> bool:
    """Tell whether a task is skipped, or may be, for having no values to be run for: that is an answer."""
    if run.is_expanded_to_nothing(task_id):
        return True
    waits = run.tasks[task_id].by_state.keys() == {None}
    assert run.graph is not None, "there is a forecast"
    return waits and run.graph.is_empty(task_id) and any(ends & K for ends in forecast.outlook(task_id))


def _failed_leaf(run: RunState) -> Failed | None:
    """Return the failure of an effective leaf: the run fails, whatever else it does."""
    forecast = run.forecast()
    if run.graph is None or forecast is None:
        return None
    doomed = [
        (task_id, min(indexes))
        for task_id in sorted(run.graph.effective_leaves)
        if (indexes := forecast.failing(task_id))
    ]
    for task_id, map_index in doomed:
        leaf = run.tasks[task_id].get(map_index)
        if leaf is not None and leaf.state in BAD:
            return _blame(run, task_id, map_index, leaf.changed)
    return _blame(run, *doomed[0]) if doomed else None


def _blame(run: RunState, task_id: str, map_index: int, ended: Origin | None = None) -> Failed:
    """Return the failure of an instance, which names the one that caused it.

    Args:
        run: The run.
        task_id: Task that is doomed, or has ended without a value.
        map_index: Index of its instance.
        ended: What ended it; `None` while that is only certain to come.
    """
    forecast = run.forecast()
    blamed = culprit(forecast, task_id, map_index) if forecast is not None else None
    place = blamed or (task_id, map_index)
    instances = run.tasks[place[0]]
    map_index = place[1] if place[1] in instances else min(instances)
    instance = instances[map_index]
    # Where all went too well for a task that waits for failures, there is nobody to blame.
    state = instance.state if instance.state in BAD else "skipped"
    return Failed(
        reason=f"task_{state}",
        origin=ended or instance.changed,
        task_id=place[0],
        map_index=map_index,
        try_number=instance.try_number,
        state=state,
        predicted=ended is None,
    )


def _answered(run: RunState, tasks: tuple[str, ...], question: Question) -> Answered | None:
    """Return the answer of all instances of all tasks, or `None` while one is missing."""
    confirmed = question.confirm == "success"
    parts: list[Part] = []
    last: list[Origin] = []
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        nothing = run.is_expanded_to_nothing(task_id)
        if instances is None or not (nothing or instances.complete(confirmed)):
            return None
        parts.append(Part(task_id, instances.answers, instances.tries))
        last.append(instances[-1].changed if nothing else instances.last_answer(confirmed))
    return Answered(tasks, max(last, key=lambda origin: origin.seq or 0), tuple(parts)) if last else None


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
