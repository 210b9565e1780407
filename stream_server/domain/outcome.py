"""Rules for the outcome of a run: which tasks are its result tasks, and whether its result or failure is certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stream_server.domain.evidence import (
    Answer,
    Evidence,
    FailedInstance,
    can_answer,
    collect_evidence,
    find_answer,
    find_failed_leaf,
    find_failed_result_task,
    lacks_evidence,
)
from stream_server.domain.native_marks import are_marks_complete, find_marked_tasks, may_show_mark, uses_native_marks
from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import SourceRow


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a subscriber wants to receive of a run. Subscribers with equal options share an `OutcomeTracker`."""

    result_tasks: tuple[str, ...] = ()
    """Tasks whose return values are the result; empty for those that the DAG's author marked."""

    until: Literal["result", "run"] = "result"
    """Whether the stream ends with the outcome, or with the run."""

    confirm: Literal["push", "success"] = "push"
    """Whether a result is sent as soon as it is pushed, or when its task has also succeeded."""

    redact_values: bool = False
    """Whether values are left out because the caller may not read them."""

    redact_inputs: bool = False
    """Whether requests for human input and their answers are left out because the caller may not read them."""

    include_output: bool = True
    """Whether the output of running tasks is sent."""

    url_prefix: str = ""
    """What precedes paths in the URLs of clients."""


class ReturnValue(NamedTuple):
    """A return value in the database."""

    bytes: int
    """Size as JSON text."""

    json: str | None
    """The JSON text; `None` if it is too large to be sent."""


ReturnValues = Mapping[tuple[str, int], ReturnValue]
"""Return values by task and `map_index`. One that is missing does not exist."""


class ResultVersion(NamedTuple):
    """Identifies the result of one task. It differs if the result may have changed."""

    task_id: str
    changes: int
    """`TaskInstances.result_changes`."""

    tries: int
    iteration: int | None = None
    """Iteration of the loop around the task."""


class Undecided(NamedTuple):
    """Neither a result nor a failure is certain."""


class ResultKnown(NamedTuple):
    """Every result task that was not skipped has a result."""

    task_ids: tuple[str, ...]
    """Without those that were skipped."""

    source: SourceRow
    versions: tuple[ResultVersion, ...]
    """Of each of these tasks."""


class FailureKnown(NamedTuple):
    """It is certain that there will be no result. The members name the task instance that is the root cause."""

    reason: str
    source: SourceRow
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    iteration: int | None = None
    """Iteration of the loop around the task."""

    predicted: bool = False
    """Whether Airflow has not written yet that the result task ended."""


class NoneKnown(NamedTuple):
    """The run has ended as a success, and there is neither a result nor a failure."""

    reason: Literal["task_skipped", "no_result_task", "run_ended"]
    task_id: str | None = None
    """With `task_skipped` the first result task."""


Decision = Undecided | ResultKnown | FailureKnown | NoneKnown


def select_result_tasks(run: RunState, options: WatchOptions) -> tuple[str, ...]:
    """Return the result tasks, as far as they are known.

    They are the tasks that the caller names; else those that the author marked in a way that Airflow serialises; else
    those with Airflow 3.3's own mark; else the only leaf.
    """
    if options.result_tasks:
        return options.result_tasks
    if run.graph is not None and run.graph.marked_tasks:
        return tuple(sorted(run.graph.marked_tasks))
    if marked := find_marked_tasks(run):
        return tuple(sorted(marked))
    return (run.graph.only_leaf,) if run.graph is not None and run.graph.only_leaf is not None else ()


def evaluate(run: RunState, options: WatchOptions, *, needs_cause: bool = True) -> Decision:
    """Return what is certain about the result of a run.

    Args:
        run: The run.
        options: What is watched of it.
        needs_cause: Whether a failure must name its root cause. To find it takes milliseconds in a large run.
    """
    if not run.is_large:
        return _evaluate(run, options, needs_cause)
    # It can take some 20 ms, and clients that join need it again.
    key = options.result_tasks, options.confirm, needs_cause
    decision: Decision | None = run.decisions.get(key)
    if decision is None:
        decision = run.decisions[key] = _evaluate(run, options, needs_cause)
    return decision


def _evaluate(run: RunState, options: WatchOptions, needs_cause: bool) -> Decision:
    if run.is_deleted:
        return FailureKnown("run_deleted", run.last_change)
    tasks = select_result_tasks(run, options)
    if lacks_evidence(run, tasks):
        return Undecided()
    evidence = collect_evidence(run)._replace(needs_cause=needs_cause)
    if not options.result_tasks and uses_native_marks(run) and not are_marks_complete(run):
        if run.info.state != "success":
            return _evaluate_incomplete(evidence, tasks)
        decision = _evaluate_tasks(evidence, tasks, options)
        return decision._replace(source=run.last_change) if isinstance(decision, ResultKnown) else decision
    decision = _evaluate_tasks(evidence, tasks, options)
    if isinstance(decision, ResultKnown) and not options.result_tasks and may_show_mark(run, tasks):
        return Undecided()
    return decision


def _evaluate_tasks(evidence: Evidence, tasks: tuple[str, ...], options: WatchOptions) -> Decision:
    """Evaluate a run whose result tasks are all known."""
    run = evidence.run
    if failure := find_failed_result_task(evidence, tasks):
        return _build_failure(run, failure)
    needs_success = options.confirm == "success"
    if not run.has_ended and run.awaited_task in tasks and _is_awaited(evidence, run.awaited_task, needs_success):
        # A DAG may have a thousand result tasks, and the one that was awaited before is still open in most cases.
        return Undecided()
    answers = {task_id: find_answer(evidence, task_id, needs_success) for task_id in tasks}
    kinds = set(answers.values())
    if "value" in kinds and "waiting" not in kinds:
        return _build_result(run, answers, options)
    waiting = () if run.has_ended else [task_id for task_id, answer in answers.items() if answer == "waiting"]
    run.awaited_task = next((task_id for task_id in waiting if can_answer(evidence, task_id)), None)
    # A result task may still answer, although something else fails the run.
    may_answer = bool(waiting) and ("value" in kinds or run.awaited_task is not None)
    if not may_answer and run.info.state != "success" and (failure := find_failed_leaf(evidence)):
        return _build_failure(run, failure)._replace(predicted=bool(waiting) or failure.ended is None)
    return _evaluate_end(run, answers)


def _is_awaited(evidence: Evidence, task_id: str | None, needs_success: bool) -> bool:
    """Whether a result task waits, and may give a value."""
    if task_id is None or find_answer(evidence, task_id, needs_success) != "waiting":
        return False
    return can_answer(evidence, task_id)


def _evaluate_incomplete(evidence: Evidence, tasks: tuple[str, ...]) -> FailureKnown | Undecided:
    """Evaluate a run that has not succeeded, while more tasks may be result tasks. If the run fails, its result does.

    Args:
        evidence: What is known of the run.
        tasks: The result tasks that are known.
    """
    run = evidence.run
    failure = find_failed_result_task(evidence, tasks)
    if failure is None and (run.has_ended or run.earlier_marks is None):
        failure = find_failed_leaf(evidence)
    if failure is not None:
        return _build_failure(run, failure)
    return FailureKnown("run_failed", run.last_change, state="failed") if run.has_ended else Undecided()


def _evaluate_end(run: RunState, answers: Mapping[str, Answer]) -> FailureKnown | NoneKnown | Undecided:
    """Evaluate a run in which neither the result tasks nor a leaf decide the outcome."""
    if run.info.state == "failed":
        return FailureKnown("run_failed", run.last_change, state="failed")
    if run.info.state != "success":
        return Undecided()
    if not answers:
        return NoneKnown("no_result_task")
    if set(answers.values()) == {"skipped"}:
        return NoneKnown("task_skipped", next(iter(answers)))
    return NoneKnown("run_ended")


def _build_failure(run: RunState, failure: FailedInstance) -> FailureKnown:
    instance = run.tasks[failure.task_id][failure.map_index]
    return FailureKnown(
        reason=f"task_{failure.state}",
        source=failure.ended or instance.changed,
        task_id=failure.task_id,
        map_index=failure.map_index,
        try_number=instance.try_number,
        state=failure.state,
        iteration=run.iterations.newest(failure.task_id),
        predicted=failure.ended is None,
    )


def _build_result(run: RunState, answers: Mapping[str, Answer], options: WatchOptions) -> ResultKnown:
    needs_success = options.confirm == "success"
    versions: list[ResultVersion] = []
    sources: list[SourceRow] = []
    for task_id, answer in answers.items():
        instances = run.tasks[task_id]
        sources += [instances[one].changed for one in instances.by_state.get("skipped", ())]
        if answer == "value":
            versions.append(
                ResultVersion(task_id, instances.result_changes, instances.tries, run.iterations.newest(task_id))
            )
            sources.append(instances.last_result_source(needs_success))
    return ResultKnown(
        tuple(version.task_id for version in versions), max(sources, key=lambda row: row.seq or 0), tuple(versions)
    )
