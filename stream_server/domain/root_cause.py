"""Who is to blame for an instance that has ended without a value, or is certain to. Pure."""

from __future__ import annotations

from stream_server.domain.prediction import END_OF_STATE, Prediction
from stream_server.domain.trigger_rules import Ends, F, K, R, S, U


def find_root_cause(forecast: Prediction, task_id: str, map_index: int) -> tuple[str, int] | None:
    """Return the instance because of which an instance is doomed, or has ended without a value.

    It is the nearest one that failed for good; where none did, that from which failure, or skipping, comes. `None`
    where there is none either.
    """
    outlook = forecast.possible_states(task_id)
    ends = next((ends for ends, found in outlook.items() if map_index in found), F | U)
    ways = [(F | U, F), (F | U, U), (K | R, K | R)] if ends & (F | U) else [(K | R, K | R), (F | U, F)]
    roots = (_find_root(forecast, task_id, map_index, along, ended) for along, ended in ways)
    return next((root for root in roots if root is not None), None)


def _find_root(forecast: Prediction, task_id: str, map_index: int, along: Ends, ended: Ends) -> tuple[str, int] | None:
    """Go up, level by level, along what is harmed, to what has ended so, and by itself unless it failed."""
    level: set[tuple[str, int | None]] = {(task_id, map_index)}
    visited: set[tuple[str, int | None]] = set()
    while level:
        visited |= level
        causes = {place: _find_causes(forecast, *place, along) for place in level}
        roots = [
            (place[0], index)
            for place in level
            if ended == F or not causes[place]
            for index in _find_ended(forecast, *place, ended)
        ]
        if roots:
            return min(roots)
        level = set[tuple[str, int | None]]().union(*causes.values()) - visited
    return None


def _find_causes(forecast: Prediction, task_id: str, map_index: int | None, harm: Ends) -> set[tuple[str, int | None]]:
    causes: set[tuple[str, int | None]] = set()
    for above in (
        {*forecast.deciding_upstream(task_id), *forecast.graph.expansion_sources(task_id)}
        if task_id in forecast.graph.tasks
        else ()
    ):
        index = map_index if forecast.sees_same_index_only(task_id, above) else None
        if any(
            ends & harm and not ends & S and (index is None or index in found)
            for ends, found in forecast.possible_states(above).items()
        ):
            causes.add((above, index))
    return causes


def _find_ended(forecast: Prediction, task_id: str, map_index: int | None, harm: Ends) -> list[int]:
    states = forecast.states.get(task_id, {})
    return [
        min(indexes) if map_index is None else map_index
        for state, indexes in states.items()
        if END_OF_STATE.get(state, 0) & harm and (map_index is None or map_index in indexes)
    ]
