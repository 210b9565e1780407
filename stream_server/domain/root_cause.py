"""The root cause of instances that have failed, or are certain to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from stream_server.domain.prediction import Prediction
from stream_server.domain.prediction_plan import deciding_upstream, sees_same_index_only
from stream_server.domain.trigger_rules import FAILURE, Ends

_Node = tuple[str, int | None]
"""A task and an index; all instances of the task if the index is `None`."""


def find_root_cause(
    prediction: Prediction, failing: Iterable[tuple[str, int]], end_of: Callable[[str, int], datetime]
) -> tuple[str, int] | None:
    """Return the first instance that failed by itself, and because of which instances fail.

    If there is none, the first one that Airflow failed without a failure upstream. `None` if there is none either, as
    when all that a task waits for was skipped.

    Args:
        prediction: How the instances of the run can end.
        failing: Instances that have failed, or are certain to.
        end_of: Returns when an instance ended. The first one is the same for clients that got the failure at once, and
            for those that join after more has failed.
    """
    nodes = list(failing)
    for state in ("failed", "upstream_failed"):
        roots = _find_roots(prediction, nodes, state)
        if roots:
            return min(roots, key=lambda one: (end_of(*one), *one))
    return None


def _find_roots(prediction: Prediction, failing: Iterable[_Node], state: str) -> list[tuple[str, int]]:
    """Return the instances upstream that have ended in a state. Nothing is upstream of those that failed.

    Args:
        prediction: How the instances of the run can end.
        failing: Instances to start from. The search continues with upstream tasks that are certain to fail.
        state: State of the instances to find. Unless they failed, they must have no such upstream themselves.
    """
    pending: list[_Node] = list(failing)
    visited: set[_Node] = set(pending)
    roots: list[tuple[str, int]] = []
    while pending:
        node = pending.pop()
        found = [(node[0], index) for index in _find_ended(prediction, *node, state)]
        if found and state == "failed":
            roots += found
            continue
        causes = _find_causes(prediction, *node)
        if not causes:
            roots += found
        pending += causes - visited
        visited |= causes
    return roots


def _find_causes(prediction: Prediction, task_id: str, map_index: int | None) -> set[_Node]:
    failing = prediction.failing_upstream(task_id)
    if failing is not None:
        return {(upstream, None) for upstream in failing}
    graph = prediction.graph
    causes: set[_Node] = set()
    for upstream in {*deciding_upstream(graph, task_id), *graph.expansion_sources(task_id)}:
        index = map_index if sees_same_index_only(graph, task_id, upstream) else None
        if any(
            ends & FAILURE and not ends & Ends.SUCCESS and (index is None or index in found)
            for ends, found in prediction.possible_states(upstream).items()
        ):
            causes.add((upstream, index))
    return causes


def _find_ended(prediction: Prediction, task_id: str, map_index: int | None, state: str) -> Iterable[int]:
    indexes = prediction.states.get(task_id, {}).get(state, frozenset())
    return indexes if map_index is None else {map_index} & indexes
