"""The root cause of an instance that has ended without a value, or is certain to."""

from __future__ import annotations

from stream_server.domain.prediction import END_OF_STATE, Prediction
from stream_server.domain.trigger_rules import FAILURE, NONE, Ends

_SKIP = Ends.SKIPPED | Ends.REMOVED

_Node = tuple[str, int | None]
"""A task and an index; all instances of the task if the index is `None`."""


def find_root_cause(prediction: Prediction, task_id: str, map_index: int) -> tuple[str, int] | None:
    """Return the instance that explains why an instance cannot succeed.

    That is the nearest one upstream that failed by itself; if there is none, the one that the failure or the skip comes
    from. `None` if there is none either, as when a task waits for failures and all succeeded.
    """
    possible = prediction.possible_states(task_id)
    ends = next((ends for ends, found in possible.items() if map_index in found), FAILURE)
    by_failure = [(FAILURE, Ends.FAILED), (FAILURE, Ends.UPSTREAM_FAILED)]
    by_skip = [(_SKIP, _SKIP)]
    searches = [*by_failure, *by_skip] if ends & FAILURE else [*by_skip, by_failure[0]]
    roots = (_find_root(prediction, task_id, map_index, along, ended) for along, ended in searches)
    return next((root for root in roots if root is not None), None)


def _find_root(
    prediction: Prediction, task_id: str, map_index: int, along: Ends, ended: Ends
) -> tuple[str, int] | None:
    """Return the nearest instance, level by level upstream, that has ended in one of some states.

    Args:
        prediction: How the instances of the run can end.
        task_id: Task of the instance to start from.
        map_index: Its index.
        along: The search continues with upstream tasks that cannot succeed and can end in one of these states.
        ended: States of the instance to find. Unless it failed, it must have no such upstream itself.
    """
    level: set[_Node] = {(task_id, map_index)}
    visited: set[_Node] = set()
    while level:
        visited |= level
        causes = {node: _find_causes(prediction, *node, along) for node in level}
        roots = [
            (node[0], index)
            for node in level
            if ended == Ends.FAILED or not causes[node]
            for index in _find_ended(prediction, *node, ended)
        ]
        if roots:
            return min(roots)
        level = set[_Node]().union(*causes.values()) - visited
    return None


def _find_causes(prediction: Prediction, task_id: str, map_index: int | None, along: Ends) -> set[_Node]:
    graph = prediction.graph
    if task_id not in graph.tasks:
        return set()
    causes: set[_Node] = set()
    for upstream in {*prediction.deciding_upstream(task_id), *graph.expansion_sources(task_id)}:
        index = map_index if prediction.sees_same_index_only(task_id, upstream) else None
        if any(
            ends & along and not ends & Ends.SUCCESS and (index is None or index in found)
            for ends, found in prediction.possible_states(upstream).items()
        ):
            causes.add((upstream, index))
    return causes


def _find_ended(prediction: Prediction, task_id: str, map_index: int | None, ended: Ends) -> list[int]:
    return [
        min(indexes) if map_index is None else map_index
        for state, indexes in prediction.states.get(task_id, {}).items()
        if END_OF_STATE.get(state, NONE) & ended and (map_index is None or map_index in indexes)
    ]
