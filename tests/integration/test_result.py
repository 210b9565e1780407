"""`GET …/result`, and streams as NDJSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import sse, stream_path, types
from support.waiting import eventually_answered, eventually_async
from support.waiting_servers import has_read_other_servers, register_other_server


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=15) as client:
        yield client


def result_path(run: RunKey, query: str = "") -> str:
    return stream_path(run).removesuffix("stream") + f"result{query}"


async def fail(airflow: AirflowSql, run: RunKey, task_id: str) -> None:
    await airflow.start_task(run, task_id)
    await airflow.set_task(run, task_id, "failed")


async def test_the_response_is_sent_when_the_result_commits(
    server: RunningServer, client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    waiting = asyncio.create_task(client.get(result_path(run)))
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "answer")
    await airflow.push(run, "answer", {"text": "42"})
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "state": "running",
        "outcome": "result",
        "results": {"answer": {"text": "42"}},
    }
    again = await client.get(result_path(run, "?timeout=0"))
    assert again.json() == answer.json(), "a known result is returned at once"


async def test_confirm_success_waits_for_the_success_of_the_task(
    client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.start_task(run, "answer")
    await airflow.push(run, "answer", 1)
    assert (await client.get(result_path(run, "?timeout=0"))).status_code == 200
    assert (await client.get(result_path(run, "?timeout=0&confirm=success"))).status_code == 202
    await airflow.set_task(run, "answer", "success")
    assert (await client.get(result_path(run, "?confirm=success"))).json()["results"] == {"answer": 1}


async def test_a_timeout_returns_the_current_state(client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "ask")
    answer = await client.get(result_path(run, "?timeout=50ms&result=answer"))
    assert answer.status_code == 202
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["location"] == result_path(run, "?timeout=50ms&result=answer")
    assert answer.json() == {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "state": "running",
        "outcome": "pending",
        "tasks": {"running": 1, "no_status": 2},
    }


async def test_a_failed_run_returns_status_200(client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey) -> None:
    await fail(airflow, run, "answer")
    answer = await client.get(result_path(run))
    assert answer.status_code == 200
    body = answer.json()
    assert body["outcome"] == "failure"
    assert body["failure"]["task_id"] == "answer"
    assert body["failure"]["reason"] == "task_failed"


async def test_unwrap_returns_the_bare_value(client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey) -> None:
    pending = await client.get(result_path(run, "?unwrap=true&timeout=0"))
    assert pending.status_code == 202
    await airflow.run_task(run, "answer", ["bare"])
    answer = await client.get(result_path(run, "?unwrap=true"))
    assert (answer.status_code, answer.json()) == (200, ["bare"])
    assert answer.headers["content-type"] == "application/json"
    await airflow.run_task(run, "ask", 1)
    both = await client.get(result_path(run, "?unwrap=true&result=answer&result=ask"))
    assert both.status_code == 422
    assert "the run has answer, ask; choose one" in both.json()["detail"]


@pytest.mark.parametrize(("query", "status"), [("", 502), ("&fail_status=424", 424)])
async def test_unwrap_without_a_value_returns_the_fail_status(
    client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey, query: str, status: int
) -> None:
    await fail(airflow, run, "answer")
    answer = await client.get(result_path(run, f"?unwrap=true{query}"))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["title"], problem["outcome"]) == (status, "No result", "failure")
    assert "task failed in task 'answer'" in problem["detail"]


async def test_a_value_that_is_too_large_is_returned_as_a_reference(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.run_task(run, "answer", "x" * 1000)
    async with running_server(settings(max_result_bytes=100)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url) as client:
            plain = (await client.get(result_path(run))).json()
            bare = await client.get(result_path(run, "?unwrap=true"))
    assert plain["references"]["answer"]["bytes"] == 1002
    assert plain["results"] == {}
    assert bare.status_code == 502
    assert "1002 bytes" in bare.json()["detail"]
    assert bare.json()["references"] == plain["references"]


async def test_a_run_without_a_result_task_returns_when_it_ends(client: httpx.AsyncClient, airflow: AirflowSql) -> None:
    version = await airflow.add_dag("forked", {"one": [], "other": []})
    key = RunKey("forked", "r")
    await airflow.trigger(key, version, ["one", "other"])
    waiting = asyncio.create_task(client.get(result_path(key)))
    for task_id in ("one", "other"):
        await airflow.run_task(key, task_id, 1)
    await airflow.set_run(key, "success")
    body = (await waiting).json()
    assert (body["outcome"], body["reason"], body["state"]) == ("none", "no_result_task", "success")
    assert "results" not in body
    assert (await client.get(result_path(key, "?unwrap=true"))).status_code == 204


async def test_a_skipped_result_task_returns_204_with_unwrap(
    client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.start_task(run, "answer")
    await airflow.set_task(run, "answer", "skipped")
    assert (await client.get(result_path(run, "?unwrap=true&timeout=0"))).status_code == 202
    waiting = asyncio.create_task(client.get(result_path(run, "?unwrap=true")))
    await airflow.set_run(run, "success")
    bare = await waiting
    assert (bare.status_code, bare.content) == (204, b"")
    assert "content-type" not in bare.headers
    body = (await client.get(result_path(run))).json()
    assert (body["outcome"], body["reason"], body["task_id"]) == ("none", "task_skipped", "answer")


async def test_skipped_instances_are_named_by_the_indexes_of_the_others(
    client: httpx.AsyncClient, airflow: AirflowSql
) -> None:
    version = await airflow.add_dag("squares", {"square": []})
    key = RunKey("squares", "r")
    await airflow.trigger(key, version, ["square"])
    await airflow.expand(key, version, "square", 3)
    await airflow.start_task(key, "square", 1)
    await airflow.set_task(key, "square", "skipped", 1)
    for map_index in (0, 2):
        await airflow.run_task(key, "square", map_index, map_index)
    body = (await client.get(result_path(key))).json()
    assert (body["results"], body["map_indexes"]) == ({"square": [0, 2]}, {"square": [0, 2]})
    assert (await client.get(result_path(key, "?unwrap=true"))).json() == [0, 2]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?timeout=soon", "`timeout`: 'soon' is not a duration"),
        ("?unwrap=yes", "`unwrap` must be 'false' or 'true', got 'yes'"),
        ("?timeout=%D9%A3s", "`timeout`: '\u0663s' is not a duration"),
        ("?fail_status=200", "`fail_status` must be an integer from 400 to 599, got '200'"),
        (
            "?unwrap=true&fail_status=000000400599",
            "`fail_status` must be an integer from 400 to 599, got '000000400599'",
        ),
        ("?confirm=maybe", "`confirm` must be 'push' or 'success', got 'maybe'"),
        ("?until=never", "must be 'result' or 'run'"),
        ("?result=missing", "has no task 'missing'"),
    ],
)
async def test_an_invalid_parameter_is_rejected(
    client: httpx.AsyncClient, run: RunKey, query: str, detail: str
) -> None:
    answer = await client.get(result_path(run, query))
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]


async def test_an_unknown_run_is_404(client: httpx.AsyncClient, server: RunningServer) -> None:
    answer = await client.get(result_path(RunKey("chat", "no-such-run")))
    assert (answer.status_code, answer.json()["title"]) == (404, "Run not found")
    assert server.hub.statistics().runs == 0


async def test_a_disconnect_leaves_no_subscription(
    server: RunningServer, client: httpx.AsyncClient, run: RunKey
) -> None:
    waiting = asyncio.create_task(client.get(result_path(run)))
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
    waiting.cancel()
    await eventually_async(lambda: server.hub.statistics()[:2] == (0, 0))


async def test_a_stopping_server_returns_503_with_retry_after(settings: Callable[..., Settings], run: RunKey) -> None:
    async with httpx.AsyncClient(timeout=15) as client:
        async with running_server(settings()) as server:
            await eventually_async(lambda: server.hub.is_live)
            waiting = asyncio.create_task(client.get(server.url + result_path(run)))
            await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
        answer = await waiting
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert answer.json()["detail"] == "The server is shutting down; retry"


async def test_waiting_sends_no_queries_to_the_database(
    server: RunningServer, client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    """While many requests wait and runs change, only the tail sends queries."""
    await register_other_server(airflow, run)
    waiting = [asyncio.create_task(client.get(result_path(run)))]
    await eventually_answered(lambda: has_read_other_servers(airflow, run))
    waiting += [asyncio.create_task(client.get(result_path(run))) for _ in range(49)]
    await eventually_async(lambda: server.hub.statistics().subscriptions == 50)
    before = await last_query_times(airflow)
    assert before, "the run was read"
    async with sse(server.url, run) as events:
        await events.next()
        for state in ("scheduled", "queued", "running", "success"):
            await airflow.set_task(run, "ask", state)
            await events.next()
    assert await last_query_times(airflow) == before
    await airflow.run_task(run, "answer", 1)
    assert {answer.json()["outcome"] for answer in await asyncio.gather(*waiting)} == {"result"}


async def last_query_times(airflow: AirflowSql) -> dict[int, Any]:
    """Return when each connection was last released to the server's pool: asyncpg then sends UNLISTEN."""
    rows = await airflow.connection.fetch(
        "SELECT pid, query_start FROM pg_stat_activity WHERE application_name = 'stream_server'"
        " AND datname = current_database() AND query LIKE '%UNLISTEN%'"
    )
    return {row["pid"]: row["query_start"] for row in rows}


@pytest.mark.parametrize(
    ("accept", "is_ndjson"),
    [
        ("application/x-ndjson", True),
        ("text/event-stream;q=0.5, application/x-ndjson", True),
        ("text/event-stream, application/x-ndjson", False),
        ("*/*", False),
    ],
)
async def test_a_stream_is_ndjson_if_accept_prefers_it(
    client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey, accept: str, *, is_ndjson: bool
) -> None:
    await airflow.run_task(run, "answer", "line\nbreak")
    answer = await client.get(stream_path(run), headers={"Accept": accept})
    media_type = "application/x-ndjson" if is_ndjson else "text/event-stream"
    assert answer.headers["content-type"].partition(";")[0] == media_type
    assert (answer.headers["x-accel-buffering"], answer.headers["incremental"]) == ("no", "?1")
    if is_ndjson:
        frames = [json.loads(line) for line in answer.text.splitlines()]
        assert types(frames) == ["snapshot", "result", "end"]
        assert frames[1]["results"] == {"answer": "line\nbreak"}
        assert frames[-1]["cursor"].endswith(".end")
