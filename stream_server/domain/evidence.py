"""What the states of its tasks show about the answer of a run: values, skips, and failures that are certain.

The evidence excludes what the end of the run did to its tasks (`interruption`). So a client that joins after the end
finds the failure that clients got before it, if there was one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timezone
from typing import Literal, NamedTuple, TypeAlias

from stream_server.domain.interruption import Interrupted, find_interrupted, is_expanded_to_nothing
from stream_server.domain.iterations import is_gate_open
from stream_server.domain.mapped_result import count_expected_results
from stream_server.domain.prediction import END_OF_STATE, InstanceStates, Prediction
from stream_server.domain.root_cause import find_root_cause
from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import SourceRow
from stream_server.domain.trigger_rules import Ends

Answer: TypeAlias = Literal["value", "skipped", "waiting"]
"""What a result task that has not failed gives: all its values; nothing, because it is skipped; or nothing yet."""

FAILED_STATES = frozenset({"failed", "upstream_failed"})

_NEVER = datetime.max.replace(tzinfo=timezone.utc)

_STATE_BEFORE_END: Mapping[str, str | None] = {"skipped": None, "failed": "running", "success": "running"}
"""State that an interrupted instance had, as far as a prediction needs it."""


class Evidence(NamedTuple):
    """What is known of a run, without what the end of the run did to its tasks."""

    run: RunState
    interrupted: Interrupted
    undone: InstanceStates | None
    """The states before the end of the run; `None` if it interrupted nothing."""

    prediction: Prediction | None
    """`None` if nothing is certain beyond the states, or the run was a success."""

    needs_cause: bool = True
    """Whether a failure must name its root cause, or may name any instance because of which there is no result."""

    def may_iterate(self, task_id: str) -> bool:
        """Whether a task is in a loop that may still have another iteration, whose instances would replace these."""
        run = self.run
        loop = run.graph.loop_of(task_id) if run.graph is not None else None
        if loop is None or run.has_ended:
            return False
        gate = run.tasks.get(loop.gate_task_id)
        iteration = run.iterations.newest(loop.gate_task_id)
        if not is_gate_open(loop, None if gate is None else gate.by_state, iteration):
            return False
        possible = None if self.prediction is None else self.prediction.possible_states(loop.gate_task_id)
        return possible is None or any(ends & Ends.SUCCESS for ends in possible)

    def states_of(self, task_id: str) -> Mapping[str | None, AbstractSet[int]]:
        return self.run.tasks[task_id].by_state if self.undone is None else self.undone[task_id]


class FailedInstance(NamedTuple):
    """The instance that is the root cause of a failure."""

    task_id: str
    map_index: int
    state: str
    """Its state, or the one that Airflow is about to write."""

    ended: SourceRow | None
    """Row in which the result task or leaf failed; `None` if Airflow has not written it yet."""


def lacks_evidence(run: RunState, task_ids: Iterable[str]) -> bool:
    """Whether there is no evidence at all: nothing has ended without a value, or can, and no result task has a value.

    Most changes of a run are like that (`make bench-own-runs`).
    """
    if run.has_ended or run.has_unsuccessful_tasks or run.predict() is not None:
        return False
    for task_id in task_ids:
        instances = run.tasks.get(task_id)
        if instances is not None and instances.indexes_with_result:
            return False
    return True


def collect_evidence(run: RunState) -> Evidence:
    interrupted = find_interrupted(run)
    if not interrupted:
        return Evidence(run, interrupted, None, None if run.info.state == "success" else run.predict())
    states: InstanceStates = {
        task_id: _undo_end(instances.by_state, interrupted[task_id]) if task_id in interrupted else instances.by_state
        for task_id, instances in run.tasks.items()
    }
    if run.info.state == "success" or run.graph is None:
        return Evidence(run, interrupted, states, None)
    return Evidence(run, interrupted, states, Prediction(run.graph, states, run.iterations.newest))


def find_answer(evidence: Evidence, task_id: str, needs_success: bool) -> Answer:
    """Return what a result task gives that has not failed.

    Instances that are skipped, or are certain to be, are left out of the values of a mapped task.
    """
    run = evidence.run
    instances = run.tasks.get(task_id)
    if instances is None or evidence.may_iterate(task_id) or _is_about_to_be_removed(run, task_id):
        return "waiting"
    if is_expanded_to_nothing(run, task_id):
        return "value"
    interrupted = evidence.interrupted.get(task_id, frozenset())
    values = instances.by_state.get("success", frozenset()) if needs_success else instances.indexes_with_result
    skipped = instances.by_state.get("skipped", frozenset())
    if interrupted:
        values, skipped = values - interrupted, skipped - interrupted
    expected = count_expected_results(instances)
    count = len(values) + len(skipped)
    if expected > count:
        count += len(_find_predicted_skips(evidence, task_id))
    if not expected or count < expected:
        return "waiting"
    return "value" if values else "skipped"


def can_answer(evidence: Evidence, task_id: str) -> bool:
    """Whether a result task that waits may still give a value. Otherwise, it is skipped or fails."""
    run, prediction = evidence.run, evidence.prediction
    instances = run.tasks.get(task_id)
    if instances is None or prediction is None or run.graph is None or task_id not in run.graph.tasks:
        return True
    if evidence.may_iterate(task_id) or _may_be_expanded_to_nothing(run, task_id):
        return True
    return any(ends & (Ends.SUCCESS | Ends.RUN) for ends in prediction.possible_states(task_id))


def find_failed_result_task(evidence: Evidence, task_ids: Iterable[str]) -> FailedInstance | None:
    """Return the root cause of the result tasks that have failed, or else are certain to."""
    run = evidence.run
    if evidence.prediction is None and not run.has_unsuccessful_tasks:
        return None
    task_ids = [task_id for task_id in task_ids if not evidence.may_iterate(task_id)]
    ended: list[tuple[str, int]] = []
    for task_id in task_ids:
        instances = run.tasks.get(task_id)
        if instances is None or is_expanded_to_nothing(run, task_id):
            continue
        # When a mapping shrinks, Airflow removes the indexes beyond its length. Their values are not missing.
        failed = FAILED_STATES if count_expected_results(instances) else {*FAILED_STATES, "removed"}
        ended += [
            (task_id, index)
            for state in failed
            for index in evidence.states_of(task_id).get(state, ())
            if state != "upstream_failed" or _is_final(evidence, task_id, index)
        ]
    if ended:
        return _find_cause(evidence, ended, is_ended=True)
    if evidence.prediction is None:
        return None
    certain = [(task_id, index) for task_id in task_ids for index in _find_failing(evidence.prediction, task_id)]
    return _find_cause(evidence, certain, is_ended=False) if certain else None


def _is_final(evidence: Evidence, task_id: str, map_index: int) -> bool:
    """Whether nothing overwrites `upstream_failed`: a task that is yet to branch or to short-circuit may skip it."""
    if evidence.prediction is None:
        return True
    return map_index in evidence.prediction.must_fail(task_id) or _have_all_ended(evidence.run)


def _have_all_ended(run: RunState) -> bool:
    """Whether every instance has ended, so that the next loop of the scheduler ends the run (`DagRun.update_state`).

    A prediction does not look at this: it allows for `fail_fast`, by which another failure skips what has failed.
    """
    return run.has_ended or all(instances.by_state.keys() <= END_OF_STATE.keys() for instances in run.tasks.values())


def _is_about_to_be_removed(run: RunState, task_id: str) -> bool:
    """Whether the DAG does not have a task any more: each loop of the scheduler removes its instances, if they ended.

    So `fail_fast` may skip a task that was removed, and the next loop removes it again.
    """
    return not run.has_ended and run.graph is not None and task_id not in run.graph.tasks


def find_failed_leaf(evidence: Evidence) -> FailedInstance | None:
    """Return the root cause of the effective leaves that fail the run, whatever else happens."""
    graph, prediction = evidence.run.graph, evidence.prediction
    if graph is None or prediction is None:
        return None
    failing = [
        (task_id, index)
        for task_id in graph.effective_leaves & prediction.failing_tasks
        for index in prediction.must_fail(task_id)
    ]
    if not failing and _have_all_ended(evidence.run):
        failing = [
            (task_id, index)
            for task_id in graph.effective_leaves & evidence.run.tasks.keys()
            for state in FAILED_STATES
            for index in evidence.states_of(task_id).get(state, ())
        ]
    ended = [
        (task_id, index)
        for task_id, index in failing
        if any(index in evidence.states_of(task_id).get(state, ()) for state in FAILED_STATES)
    ]
    return _find_cause(evidence, ended or failing, is_ended=bool(ended)) if failing else None


def _undo_end(
    by_state: Mapping[str | None, AbstractSet[int]], interrupted: AbstractSet[int]
) -> Mapping[str | None, AbstractSet[int]]:
    """Return the states of the instances of a task before the end of the run."""
    states: dict[str | None, AbstractSet[int]] = {}
    for state, indexes in by_state.items():
        changed = indexes & interrupted if state in _STATE_BEFORE_END else frozenset()
        if rest := indexes - changed:
            states[state] = states.get(state, frozenset()) | rest
        if changed:
            before = _STATE_BEFORE_END[str(state)]
            states[before] = states.get(before, frozenset()) | changed
    return states


def _find_predicted_skips(evidence: Evidence, task_id: str) -> AbstractSet[int]:
    """Return the instances that are not skipped yet, but certain to be."""
    run, prediction = evidence.run, evidence.prediction
    if prediction is None or run.graph is None or task_id not in run.graph.tasks:
        return frozenset()
    if _may_be_expanded_to_nothing(run, task_id):
        return frozenset()
    possible = prediction.possible_states(task_id).items()
    return frozenset().union(*(indexes for ends, indexes in possible if ends == Ends.SKIPPED))


def _may_be_expanded_to_nothing(run: RunState, task_id: str) -> bool:
    """Whether a task is not expanded yet, and so may become mapped over nothing, which is a value."""
    return run.graph is not None and run.graph.may_expand(task_id) and -1 in run.tasks[task_id]


def _find_failing(prediction: Prediction, task_id: str) -> AbstractSet[int]:
    """Return the indexes of the instances because of which the result of a task is certain to fail.

    An instance that may be removed is not missing, unless all are.
    """
    if failing := prediction.must_fail(task_id):
        return failing
    possible = prediction.possible_states(task_id)
    if any(ends & (Ends.SUCCESS | Ends.SKIPPED | Ends.RUN) for ends in possible):
        return frozenset()
    return frozenset().union(*possible.values())


def _find_cause(evidence: Evidence, failing: list[tuple[str, int]], *, is_ended: bool) -> FailedInstance:
    """Return the root cause of instances that have failed, or are certain to; there is at least one."""
    run = evidence.run

    def end_of(task_id: str, map_index: int) -> datetime:
        instance = run.tasks[task_id].get(map_index)
        return instance.end_date or _NEVER if instance is not None else _NEVER

    first = min(failing, key=lambda one: (end_of(*one), *one))
    ended = run.tasks[first[0]][first[1]].changed if is_ended else None
    prediction = evidence.prediction if evidence.needs_cause else None
    root = find_root_cause(prediction, failing, end_of) if prediction is not None else None
    task_id, map_index = root or first
    instances = run.tasks[task_id]
    map_index = map_index if map_index in instances else min(instances)
    state = instances[map_index].state
    if state not in {*FAILED_STATES, "removed"}:
        state = "upstream_failed"
    return FailedInstance(task_id, map_index, str(state), ended)
