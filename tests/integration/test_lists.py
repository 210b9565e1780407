"""Lists of runs and DAGs, and the graph of a run; they contain only what the caller may read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import httpx
import pytest

from stream_server.auth.authorizer import FULL_ACCESS, Access, AllowAll, Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused
from stream_server.hub.filters import Resource
from stream_server.server import lifespan
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.openapi_validation import response_errors
from support.server import RunningServer, running_server
from support.streams import Events, sse, stream_path, types
from support.waiting import eventually_async

RUNS = "/api/v2/stream/runs"
DAGS = "/api/v2/stream/dags"
GRAPH = "/api/v2/dags/{dag_id}/dagRuns/{run_id}/graph"


async def get_json(server: RunningServer, path: str, status: int = 200, **what: Any) -> Any:
    template = GRAPH if path.endswith("/graph") else path
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(path, **what)
    assert answer.status_code == status, answer.text
    assert response_errors(answer, template) == []
    return answer.json()


def graph_path(key: RunKey) -> str:
    return stream_path(key).replace("/stream", "/graph")


@pytest.fixture
async def runs(airflow: AirflowSql) -> list[RunKey]:
    """Runs of three DAGs in turn, the latest first."""
    versions = {dag_id: await airflow.add_dag(dag_id, CHAIN) for dag_id in ("one", "two", "three")}
    keys = [RunKey(dag_id, f"r{number}") for number in range(4) for dag_id in versions]
    for key in keys:
        await airflow.trigger(key, versions[key.dag_id], list(CHAIN))
    return keys[::-1]


def run_keys(body: dict[str, Any]) -> list[RunKey]:
    return [RunKey(run["dag_id"], run["run_id"]) for run in body["runs"]]


async def test_the_latest_runs_come_first(server: RunningServer, runs: list[RunKey]) -> None:
    assert run_keys(await get_json(server, RUNS)) == runs
    assert run_keys(await get_json(server, RUNS, params={"limit": 2})) == runs[:2]
    two = await get_json(server, RUNS, params={"dag_id": "two", "limit": 3})
    assert run_keys(two) == [key for key in runs if key.dag_id == "two"][:3]
    assert two["runs"][0]["state"] == "queued"


async def test_a_stream_resumes_from_the_cursor_of_the_list(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    body = await get_json(server, RUNS)
    await airflow.set_run(runs[3], "running")
    async with (
        httpx.AsyncClient(base_url=server.url) as client,
        client.stream("GET", "/api/v2/stream", params={"type": "run", "cursor": body["cursor"]}) as response,
    ):
        frames = await Events(response).until("run")
    assert types(frames) == ["resumed", "run"]
    assert (frames[-1]["run_id"], frames[-1]["state"]) == (runs[3].run_id, "running")


async def test_without_runs_the_list_is_empty(server: RunningServer) -> None:
    assert (await get_json(server, RUNS))["runs"] == []


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=201", "?limit=x", "?limit=00000002099999999", f"?limit={'9' * 5000}", "?color=blue"]
)
async def test_an_invalid_query_is_rejected(server: RunningServer, query: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get(f"{RUNS}{query}")).status_code == 422
        assert (await client.get(DAGS)).status_code == 422


async def test_dags_are_found_by_their_tag(server: RunningServer, airflow: AirflowSql, runs: list[RunKey]) -> None:
    for dag_id, tag in (("one", "chat"), ("two", "nightly"), ("three", "chat")):
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, $2)", dag_id, tag)
    await airflow.connection.execute("UPDATE dag SET description = 'Answers' WHERE dag_id = 'one'")
    found = await get_json(server, DAGS, params={"tag": "chat"})
    assert found["dags"] == [
        {"dag_id": "one", "description": "Answers", "is_paused": False},
        {"dag_id": "three", "description": None, "is_paused": False},
    ]
    await airflow.connection.execute("UPDATE dag SET is_stale = true WHERE dag_id = 'three'")
    assert len((await get_json(server, DAGS, params={"tag": "chat"}))["dags"]) == 1


async def test_the_graph_has_tasks_edges_and_result_tasks(server: RunningServer, run: RunKey) -> None:
    graph = await get_json(server, graph_path(run))
    assert [(node["task_id"], node["is_result"], node["is_teardown"]) for node in graph["nodes"]] == [
        ("ask", False, False),
        ("answer", True, False),
        ("clean_up", False, True),
    ]
    assert [(edge["source"], edge["target"]) for edge in graph["edges"]] == [
        ("ask", "answer"),
        ("answer", "clean_up"),
    ]


async def test_a_run_without_a_serialized_dag_has_tasks_without_edges(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.connection.execute("DELETE FROM serialized_dag")
    graph = await get_json(server, graph_path(run))
    assert [node["task_id"] for node in graph["nodes"]] == sorted(CHAIN)
    assert graph["edges"] == []


async def test_a_serialized_dag_that_is_nested_too_deeply_counts_as_missing(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    nested = '{"dag": {"tasks": [], "task_group": ' + "[" * 2000 + "]" * 2000 + "}}"
    await airflow.connection.execute("UPDATE serialized_dag SET data = $1", nested)
    graph = await get_json(server, graph_path(run))
    assert [node["task_id"] for node in graph["nodes"]] == sorted(CHAIN)
    async with sse(server.url, run) as events:
        assert (await events.next())["result_tasks"] == []


async def test_an_unknown_run_has_no_graph(server: RunningServer, run: RunKey) -> None:
    await get_json(server, graph_path(RunKey(run.dag_id, "missing")), 404)


class OnlyDagOne:
    """Permission to read only the DAG `one`."""

    def may_read(self, resource: Resource) -> bool:
        return resource.dag_id == "one"

    def request_decision(self, resources: Collection[Resource], then: Callable[[], None]) -> None:
        then()

    async def filter_readable(self, resources: Collection[Resource]) -> Collection[Resource]:
        return {resource for resource in resources if self.may_read(resource)}


class OnlyDagOneAuthorizer(AllowAll):
    """Lets all callers with a token read the DAG `one`."""

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        await self.check_dags(caller)
        if key.dag_id != "one":
            raise AirflowRefused("Forbidden", 403)
        return FULL_ACCESS

    async def check_dags(self, caller: Caller) -> None:
        if caller.is_anonymous:
            raise AirflowRefused("Not authenticated", 401)

    def readable_dags(self, caller: Caller) -> OnlyDagOne:  # type: ignore[override] # the base class allows all DAGs
        return OnlyDagOne()


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningServer]:
    """A server on which only the DAG `one` is readable."""
    monkeypatch.setattr(lifespan, "AllowAll", OnlyDagOneAuthorizer)
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


TOKEN = {"Authorization": "Bearer x"}


async def test_lists_contain_only_what_the_caller_may_read(
    auth_server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) SELECT dag_id, 'chat' FROM dag")
    own = [key for key in runs if key.dag_id == "one"]
    body = await get_json(auth_server, RUNS, params={"limit": 2}, headers=TOKEN)
    assert run_keys(body) == own[:2]
    chat = await get_json(auth_server, DAGS, params={"tag": "chat"}, headers=TOKEN)
    assert [dag["dag_id"] for dag in chat["dags"]] == ["one"]
    await get_json(auth_server, graph_path(own[0]), headers=TOKEN)
    await get_json(auth_server, graph_path(RunKey("two", "r1")), 403, headers=TOKEN)
    assert "two" not in json.dumps([body, chat])


async def test_an_anonymous_caller_gets_401(auth_server: RunningServer, runs: list[RunKey]) -> None:
    await get_json(auth_server, RUNS, 401)
    await get_json(auth_server, graph_path(runs[0]), 401)
