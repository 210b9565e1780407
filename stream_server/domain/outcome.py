"""Which tasks answer a caller, and whether the result or the failure of a run is certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stream_server.domain.native_marks import are_complete, decide_result, leave_out_skipped, marked_tasks
from stream_server.domain.prediction import UNSUCCESSFUL_STATES, Prediction
from stream_server.domain.root_cause import find_root_cause
from stream_server.domain.run_state import RunState, SourceRow
from stream_server.domain.trigger_rules import K


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a caller wants to know of a run."""

    result_tasks: tuple[str, ...] = ()
    """Tasks whose return values are wanted; empty for those that the DAG's author meant."""

    until: Literal["result", "run"] = "result"
    """Whether the stream ends with the outcome, or goes on to the end of the run."""

    confirm: Literal["push", "success"] = "push"
    """Whether a result is told when it is pushed, or when its task has succeeded as well."""

    redact_values: bool = False
    """Whether the caller may not read return values: he is told that there is a result, and not what it is."""

    include_output: bool = True
    """Whether what running tasks say is told, too."""


class ReturnValue(NamedTuple):
    """A return value in the database."""

    bytes: int
    """Size as JSON text."""

    json: str | None
    """The JSON text; `None` where it is too large to be sent."""


ReturnValues = Mapping[tuple[str, int], ReturnValue]
"""Return values by task and `map_index`; what is not in it does not exist."""


class ResultVersion(NamedTuple):
    """The answer of one task."""

    task_id: str
    changes: int
    """How often its answer had changed."""

    tries: int


class Undecided(NamedTuple):
    """Nothing is certain yet."""


class ResultKnown(NamedTuple):
    """Every result task has answered."""

    task_ids: tuple[str, ...]
    source: SourceRow
    versions: tuple[ResultVersion, ...]
    """By what each task answered; another answer has others."""


class FailureKnown(NamedTuple):
    """The answer will not come, because of the task instance that is named."""

    reason: str
    source: SourceRow
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    predicted: bool = False
    """Whether what makes it certain is still to be written by Airflow."""


Decision = Undecided | ResultKnown | FailureKnown


def select_result_tasks(run: RunState, question: WatchOptions) -> tuple[str, ...]:
    """Return the tasks that answer, as far as they are known.

    They are those that the caller names; else those that the author marked so that Airflow serialises it; else those
    that bear Airflow 3.3's own mark; else the only leaf.
    """
    if question.result_tasks:
        return question.result_tasks
    if run.graph is not None and run.graph.marked_tasks:
        return tuple(sorted(run.graph.marked_tasks))
    if marked := marked_tasks(run):
        return tuple(sorted(marked))
    return (run.graph.only_leaf,) if run.graph is not None and run.graph.only_leaf is not None else ()


def evaluate(run: RunState, question: WatchOptions) -> Decision:
    """Tell what is certain about the answer to a question."""
    if run.is_deleted:
        return FailureKnown("run_deleted", run.changed)
    tasks = select_result_tasks(run, question)
    waits_for_end = False
    if not question.result_tasks and decide_result(run):
        remaining = leave_out_skipped(run, tasks)
        waits_for_end = not are_complete(run)
        if waits_for_end and run.info.state != "success":
            return _judge_incomplete(run, remaining)
        tasks = remaining or tasks
    failed = _find_failed_result_task(run, tasks) if tasks else _find_failed_leaf(run)
    if failed is not None:
        return failed
    answered = _find_result(run, tasks, question)
    if answered is not None:
        return answered._replace(source=run.changed) if waits_for_end else answered
    if run.info.state == "failed":
        return FailureKnown("run_failed", run.changed, state="failed")
    return Undecided()


def _judge_incomplete(run: RunState, tasks: tuple[str, ...]) -> FailureKnown | Undecided:
    """Judge a run that has not succeeded, while more tasks may be result tasks. If the run fails, the answer does."""
    failed = _find_failed_result_task(run, tasks)
    if failed is None and (run.has_ended or run.earlier_marks is None):
        failed = _find_failed_leaf(run)
    if failed is None and run.has_ended:
        return FailureKnown("run_failed", run.changed, state="failed")
    return failed or Undecided()


def _find_failed_result_task(run: RunState, tasks: tuple[str, ...]) -> FailureKnown | None:
    """Return the failure of the first result task that has ended without a value, or else is certain to."""
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        if instances is None or run.is_expanded_to_nothing(task_id):
            continue
        # Indexes beyond the length of a shrunk mapping are removed, and missed by nobody.
        missed = UNSUCCESSFUL_STATES - {"removed"} if instances.count_expected() else UNSUCCESSFUL_STATES
        failed = [min(found) for state, found in instances.by_state.items() if state in missed]
        if failed:
            return _build_failure(run, task_id, min(failed), instances[min(failed)].changed)
    forecast = run.predict()
    if forecast is not None:
        for task_id in tasks:
            if (doomed := forecast.cannot_succeed(task_id)) and not _may_expand_to_nothing(run, forecast, task_id):
                return _build_failure(run, task_id, min(doomed))
    return None


def _may_expand_to_nothing(run: RunState, forecast: Prediction, task_id: str) -> bool:
    """Tell whether a task is skipped, or may be, for having no values to be run for: that is an answer."""
    if run.is_expanded_to_nothing(task_id):
        return True
    waits = run.tasks[task_id].by_state.keys() == {None}
    assert run.graph is not None, "there is a forecast"
    return (
        waits
        and run.graph.is_mapped_over_nothing(task_id)
        and any(ends & K for ends in forecast.possible_states(task_id))
    )


def _find_failed_leaf(run: RunState) -> FailureKnown | None:
    """Return the failure of an effective leaf: the run fails, whatever else it does."""
    forecast = run.predict()
    if run.graph is None or forecast is None:
        return None
    doomed = [
        (task_id, min(indexes))
        for task_id in sorted(run.graph.effective_leaves)
        if (indexes := forecast.must_fail(task_id))
    ]
    for task_id, map_index in doomed:
        leaf = run.tasks[task_id].get(map_index)
        if leaf is not None and leaf.state in UNSUCCESSFUL_STATES:
            return _build_failure(run, task_id, map_index, leaf.changed)
    return _build_failure(run, *doomed[0]) if doomed else None


def _build_failure(run: RunState, task_id: str, map_index: int, ended: SourceRow | None = None) -> FailureKnown:
    """Return the failure of an instance, which names the one that caused it.

    Args:
        run: The run.
        task_id: Task that is doomed, or has ended without a value.
        map_index: Index of its instance.
        ended: What ended it; `None` while that is only certain to come.
    """
    forecast = run.predict()
    blamed = find_root_cause(forecast, task_id, map_index) if forecast is not None else None
    place = blamed or (task_id, map_index)
    instances = run.tasks[place[0]]
    map_index = place[1] if place[1] in instances else min(instances)
    instance = instances[map_index]
    # Where all went too well for a task that waits for failures, there is nobody to blame.
    state = instance.state if instance.state in UNSUCCESSFUL_STATES else "skipped"
    return FailureKnown(
        reason=f"task_{state}",
        source=ended or instance.changed,
        task_id=place[0],
        map_index=map_index,
        try_number=instance.try_number,
        state=state,
        predicted=ended is None,
    )


def _find_result(run: RunState, tasks: tuple[str, ...], question: WatchOptions) -> ResultKnown | None:
    """Return the answer of all instances of all tasks, or `None` while one is missing."""
    confirmed = question.confirm == "success"
    parts: list[ResultVersion] = []
    last: list[SourceRow] = []
    for task_id in tasks:
        instances = run.tasks.get(task_id)
        nothing = run.is_expanded_to_nothing(task_id)
        if instances is None or not (nothing or instances.has_all_results(confirmed)):
            return None
        parts.append(ResultVersion(task_id, instances.result_changes, instances.tries))
        last.append(instances[-1].changed if nothing else instances.last_result_source(confirmed))
    return ResultKnown(tasks, max(last, key=lambda origin: origin.seq or 0), tuple(parts)) if last else None
