"""Rules for the outcome of a run: which tasks are its result tasks, and whether its result or failure is certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stream_server.domain.mapped_result import count_expected_results, has_all_results, is_expanded_to_nothing
from stream_server.domain.native_marks import (
    are_marks_complete,
    find_marked_tasks,
    leave_out_skipped,
    uses_native_marks,
)
from stream_server.domain.prediction import UNSUCCESSFUL_STATES, Prediction
from stream_server.domain.root_cause import find_root_cause
from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import SourceRow
from stream_server.domain.trigger_rules import Ends


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

    include_output: bool = True
    """Whether the output of running tasks is sent."""


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


class Undecided(NamedTuple):
    """Neither a result nor a failure is certain."""


class ResultKnown(NamedTuple):
    """Every result task has a result."""

    task_ids: tuple[str, ...]
    source: SourceRow
    versions: tuple[ResultVersion, ...]
    """Of each result task."""


class FailureKnown(NamedTuple):
    """It is certain that there will be no result. The members name the task instance that is the root cause."""

    reason: str
    source: SourceRow
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    predicted: bool = False
    """Whether Airflow has not written yet that the result task ended."""


Decision = Undecided | ResultKnown | FailureKnown


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


def evaluate(run: RunState, options: WatchOptions) -> Decision:
    """Return what is certain about the result of a run."""
    if run.is_deleted:
        return FailureKnown("run_deleted", run.last_change)
    tasks = select_result_tasks(run, options)
    waits_for_end = False
    if not options.result_tasks and uses_native_marks(run):
        remaining = leave_out_skipped(run, tasks)
        waits_for_end = not are_marks_complete(run)
        if waits_for_end and run.info.state != "success":
            return _evaluate_incomplete(run, remaining)
        tasks = remaining or tasks
    failure = _find_failed_result_task(run, tasks) if tasks else _find_failed_leaf(run)
    if failure is not None:
        return failure
    result = _find_result(run, tasks, options)
    if result is not None:
        return result._replace(source=run.last_change) if waits_for_end else result
    if run.info.state == "failed":
        return FailureKnown("run_failed", run.last_change, state="failed")
    return Undecided()


def _evaluate_incomplete(run: RunState, tasks: tuple[str, ...]) -> FailureKnown | Undecided:
    """Evaluate a run that has not succeeded, while more tasks may be result tasks. If the run fails, its result does.

    Args:
        run: The run.
        tasks: The result tasks that are known.
    """
    failure = _find_failed_result_task(run, tasks)
    if failure is None and (run.has_ended or run.earlier_marks is None):
        failure = _find_failed_leaf(run)
    if failure is None and run.has_ended:
        return FailureKnown("run_failed", run.last_change, state="failed")
    return failure or Undecided()


def _find_failed_result_task(run: RunState, tasks: tuple[str, ...]) -> FailureKnown | None:
    """Return the failure of the first result task that has ended without a value, or else is certain to."""
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        if instances is None or is_expanded_to_nothing(run, task_id):
            continue
        # When a mapping shrinks, Airflow removes the indexes beyond its length. Their values are not missing.
        missing = UNSUCCESSFUL_STATES - {"removed"} if count_expected_results(instances) else UNSUCCESSFUL_STATES
        failed = [min(found) for state, found in instances.by_state.items() if state in missing]
        if failed:
            return _build_failure(run, task_id, min(failed), instances[min(failed)].changed)
    prediction = run.predict()
    if prediction is not None:
        for task_id in tasks:
            indexes = prediction.cannot_succeed(task_id)
            if indexes and not _may_expand_to_nothing(run, prediction, task_id):
                return _build_failure(run, task_id, min(indexes))
    return None


def _may_expand_to_nothing(run: RunState, prediction: Prediction, task_id: str) -> bool:
    """Whether a task is or may be mapped over nothing. Airflow skips it, but its result is an empty list."""
    if is_expanded_to_nothing(run, task_id):
        return True
    is_waiting = run.tasks[task_id].by_state.keys() == {None}
    assert run.graph is not None, "a prediction needs a graph"
    return (
        is_waiting
        and run.graph.is_mapped_over_nothing(task_id)
        and any(ends & Ends.SKIPPED for ends in prediction.possible_states(task_id))
    )


def _find_failed_leaf(run: RunState) -> FailureKnown | None:
    """Return the failure of an effective leaf, which fails the run whatever else happens."""
    prediction = run.predict()
    if run.graph is None or prediction is None:
        return None
    failing = [
        (task_id, min(indexes))
        for task_id in sorted(run.graph.effective_leaves & prediction.failing_tasks)
        if (indexes := prediction.must_fail(task_id))
    ]
    for task_id, map_index in failing:
        leaf = run.tasks[task_id].get(map_index)
        if leaf is not None and leaf.state in UNSUCCESSFUL_STATES:
            return _build_failure(run, task_id, map_index, leaf.changed)
    return _build_failure(run, *failing[0]) if failing else None


def _build_failure(run: RunState, task_id: str, map_index: int, ended: SourceRow | None = None) -> FailureKnown:
    """Return the failure of an instance, with its root cause.

    Args:
        run: The run.
        task_id: Task that has ended without a value, or is certain to.
        map_index: Index of its instance.
        ended: Row in which it ended; `None` if it has not ended yet.
    """
    prediction = run.predict()
    root_cause = find_root_cause(prediction, task_id, map_index) if prediction is not None else None
    task_id, map_index = root_cause or (task_id, map_index)
    instances = run.tasks[task_id]
    map_index = map_index if map_index in instances else min(instances)
    instance = instances[map_index]
    # A task that waits for failures is skipped if all succeeded; then no instance with a bad state is the root cause.
    state = instance.state if instance.state in UNSUCCESSFUL_STATES else "skipped"
    return FailureKnown(
        reason=f"task_{state}",
        source=ended or instance.changed,
        task_id=task_id,
        map_index=map_index,
        try_number=instance.try_number,
        state=state,
        predicted=ended is None,
    )


def _find_result(run: RunState, tasks: tuple[str, ...], options: WatchOptions) -> ResultKnown | None:
    """Return the result of all instances of all tasks, or `None` while one is missing."""
    needs_success = options.confirm == "success"
    versions: list[ResultVersion] = []
    sources: list[SourceRow] = []
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        is_empty = is_expanded_to_nothing(run, task_id)
        if instances is None or not (is_empty or has_all_results(instances, needs_success)):
            return None
        versions.append(ResultVersion(task_id, instances.result_changes, instances.tries))
        sources.append(instances[-1].changed if is_empty else instances.last_result_source(needs_success))
    return ResultKnown(tasks, max(sources, key=lambda row: row.seq or 0), tuple(versions)) if sources else None
