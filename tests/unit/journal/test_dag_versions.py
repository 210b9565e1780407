"""Reading the structure of DAG versions."""

from __future__ import annotations

import threading
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest

from stream_server.domain.graph import Graph
from stream_server.journal.dag_versions import GraphCache


class StubConnection:
    """Answers with one serialised DAG."""

    def __init__(self, row: dict[str, object]) -> None:
        self.row = row

    async def fetch(self, *_arguments: object) -> list[dict[str, object]]:
        return [self.row]


async def test_a_serialised_dag_is_parsed_outside_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    parse = Graph.parse

    def record_thread(*arguments: Any) -> Graph:  # passed on
        threads.append(threading.get_ident())
        return parse(*arguments)

    monkeypatch.setattr(Graph, "parse", record_thread)
    data = msgspec.json.encode({"dag": {"tasks": [{"__type": "operator", "__var": {"task_id": "a"}}]}})
    connection = cast("Any", StubConnection({"piece": data, "data_compressed": None, "dag_hash": "h"}))
    graph = await GraphCache().read(connection, {"serialized_dag": ""}, uuid4())
    assert graph is not None
    assert list(graph.tasks) == ["a"]
    assert threads
    assert threading.get_ident() not in threads
