"""Short notation for predictions of runs."""

from __future__ import annotations

from collections.abc import Mapping

from stream_server.domain.graph import Graph
from stream_server.domain.prediction import Prediction
from stream_server.domain.trigger_rules import Ends
from support.serialized_dags import Node, dag

CHAIN = dag({"a": Node("b"), "b": Node("c"), "c": Node("d"), "d": Node("e"), "e": Node("f"), "f": Node()})


def predict(graph: Graph, **states: str | Mapping[int, str | None] | None) -> Prediction:
    """Return the prediction of a run. A task that is not named has one instance without a state."""
    of_tasks: dict[str, dict[str | None, set[int]]] = {}
    for task_id in graph.tasks:
        state = states.get(task_id.replace(".", "_"))
        for index, one in (state if isinstance(state, Mapping) else {-1: state}).items():
            of_tasks.setdefault(task_id, {}).setdefault(one, set()).add(index)
    return Prediction(graph, of_tasks)


def cannot_succeed(prediction: Prediction, task_id: str) -> frozenset[int]:
    """Return the indexes of the instances whose value is certain to be missing from the result.

    An instance that may be removed is not missing, unless all are.
    """
    possible = prediction.possible_states(task_id)
    missing = [found for ends, found in possible.items() if not ends & (Ends.SUCCESS | Ends.REMOVED)]
    if not missing and not any(ends & Ends.SUCCESS for ends in possible):
        missing = list(possible.values())
    return frozenset().union(*missing)
