"""Short notation for predictions of runs."""

from __future__ import annotations

from collections.abc import Mapping

from stream_server.domain.graph import Graph
from stream_server.domain.prediction import Prediction
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
