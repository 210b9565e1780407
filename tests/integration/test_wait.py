"""`GET …/wait`. `tests/airflow/test_wait.py` compares it with Airflow's own endpoint."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from stream_server.auth.authorizer import ACCESS_WITHOUT_VALUES, Access, AllowAll, Caller
from stream_server.domain.run_state import RunKey
from stream_server.server import lifespan
from stream_server.server.client_connections import HttpConnection
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import DEADLINE, sse, stream_path
from support.waiting import eventually_answered, eventually_async
from support.waiting_servers import has_read_other_servers, register_other_server

MANY = 50


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=15) as client:
        yield client


def wait_path(run: RunKey, query: str = "?interval=60") -> str:
    return stream_path(run).removesuffix("stream") + f"wait{query}"


def parse_lines(response: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in response.text.splitlines()]


async def end_run(airflow: AirflowSql, run: RunKey, state: str = "success") -> None:
    await airflow.set_run(run, "running")
    await airflow.run_task(run, "ask", {"why": [1, 2.5, None, "ä"]})
    await airflow.start_task(run, "answer")
    await airflow.push(run, "answer", "because", dag_result=True)
    await airflow.set_task(run, "answer", "success")
    await airflow.set_run(run, state)


async def test_each_state_is_sent_when_it_commits_and_the_values_with_the_last(
    server: RunningServer, client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    async with client.stream("GET", wait_path(run)) as response:
        assert response.status_code == 200
        assert "content-type" not in response.headers, "Airflow's client does not read a body of that type"
        lines = response.aiter_lines()
        assert await anext(lines) == '{"state": "queued"}'
        await airflow.set_run(run, "running")
        assert await anext(lines) == '{"state": "running"}'
        await end_run(airflow, run)
        assert [line async for line in lines] == ['{"state": "success", "results": {"answer": "because"}}']
    await eventually_async(lambda: server.hub.statistics()[:2] == (0, 0))


@pytest.mark.parametrize(
    ("query", "results"),
    [
        ("", {"answer": "because"}),
        ("&result=ask", {"ask": {"why": [1, 2.5, None, "ä"]}}),
        ("&result=ask&result=answer&result=clean_up", {"ask": {"why": [1, 2.5, None, "ä"]}, "answer": "because"}),
        ("&result=", None),
        ("&result=missing", None),
        ("&unknown=parameter", {"answer": "because"}),
    ],
)
@pytest.mark.parametrize("state", ["success", "failed"])
async def test_a_finished_run_is_one_line(
    client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey, query: str, results: Any, state: str
) -> None:
    await end_run(airflow, run, state)
    last = {"state": state} if results is None else {"state": state, "results": results}
    assert parse_lines(await client.get(wait_path(run, f"?interval=0.5{query}"))) == [last]


async def test_the_values_of_a_mapped_task_are_a_list(client: httpx.AsyncClient, airflow: AirflowSql) -> None:
    version = await airflow.add_dag("mapped", {"each": [], "one": []})
    run = RunKey("mapped", "r")
    await airflow.trigger(run, version, ["each", "one"])
    await airflow.expand(run, version, "each", 3)
    for map_index in (2, 0):
        await airflow.run_task(run, "each", map_index * 10, map_index)
    await airflow.run_task(run, "one", None)
    await airflow.set_run(run, "success")
    (last,) = parse_lines(await client.get(wait_path(run, "?interval=1&result=each&result=one")))
    assert last["results"] == {"each": [0, 20], "one": None}


async def test_a_value_that_is_too_large_is_sent_as_a_reference(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    await end_run(airflow, run)
    await airflow.push(run, "ask", "x" * 1000)
    async with running_server(settings(max_result_bytes=100)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.get(wait_path(run, "?interval=1&result=ask&result=answer"))
    path = stream_path(run).removesuffix("stream")
    assert parse_lines(answer) == [
        {
            "state": "success",
            "results": {"answer": "because"},
            "references": {"ask": {"href": f"{path}taskInstances/ask/xcomEntries/return_value", "bytes": 1002}},
        }
    ]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", {"type": "missing", "msg": "Field required", "input": None}),
        (
            "?interval=0",
            {"type": "greater_than", "msg": "Input should be greater than 0", "input": "0", "ctx": {"gt": 0.0}},
        ),
        (
            "?interval=nan",
            {
                "type": "greater_than",
                "msg": "Input should be greater than 0",
                "input": "nan",
                "ctx": {"gt": 0.0},
            },
        ),
        (
            "?interval=often",
            {
                "type": "float_parsing",
                "msg": "Input should be a valid number, unable to parse string as a number",
                "input": "often",
            },
        ),
    ],
)
async def test_an_invalid_interval_is_rejected_as_airflow_does(
    client: httpx.AsyncClient, run: RunKey, query: str, error: dict[str, Any]
) -> None:
    answer = await client.get(wait_path(run, query))
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json() == {"detail": [{**error, "loc": ["query", "interval"]}]}


async def test_an_unknown_run_is_rejected_as_airflow_does(client: httpx.AsyncClient, server: RunningServer) -> None:
    answer = await client.get(wait_path(RunKey("chat", "no such")))
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json() == {"detail": "The DagRun with dag_id: `chat` and run_id: `no such` was not found"}
    assert server.hub.statistics().runs == 0


class NoValues(AllowAll):
    """Lets all callers read runs, and none read XComs."""

    async def check_run(self, caller: Caller, key: RunKey) -> Access:
        return ACCESS_WITHOUT_VALUES


async def test_a_caller_without_xcom_rights_gets_no_values(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await end_run(airflow, run)
    monkeypatch.setattr(lifespan, "AllowAll", NoValues)
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url) as client:
            default = await client.get(wait_path(run))
            named = await client.get(wait_path(run, "?interval=1&result=answer"))
    assert parse_lines(default) == [{"state": "success"}]
    assert (named.status_code, named.headers["content-type"]) == (403, "application/json")
    assert named.json() == {"detail": "User is not authorized to read XCom data for this Dag"}


async def test_an_unchanged_state_is_sent_again(settings: Callable[..., Settings], run: RunKey) -> None:
    """Clients and proxies may rely on a line within each interval."""
    async with running_server(settings(ping_interval="20ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with (
            httpx.AsyncClient(base_url=server.url) as client,
            client.stream("GET", wait_path(run)) as response,
        ):
            lines = response.aiter_lines()
            assert {await anext(lines) for _ in range(5)} == {'{"state": "queued"}'}


async def test_waiting_sends_no_queries_to_the_database(
    server: RunningServer, client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey
) -> None:
    async def read_query_times() -> list[str]:
        rows = await airflow.connection.fetch(
            "SELECT query_start::text FROM pg_stat_activity WHERE application_name = 'stream_server'"
            " AND datname = current_database() AND query LIKE '%UNLISTEN%' ORDER BY pid"
        )
        return [row["query_start"] for row in rows]

    await register_other_server(airflow, run)
    async with client.stream("GET", wait_path(run, "?interval=0.001")) as response:
        lines = response.aiter_lines()
        await anext(lines)
        await eventually_answered(lambda: has_read_other_servers(airflow, run))
        async with sse(server.url, run) as events:
            await events.next()
            before = await eventually_answered(read_query_times)
            await airflow.set_run(run, "running")
            for state in ("scheduled", "queued", "running"):
                await airflow.set_task(run, "ask", state)
            await anext(lines)
            await events.until("task")
            # After one more line, a whole interval has passed.
            assert await anext(lines) == '{"state": "running"}'
            assert await read_query_times() == before


@pytest.mark.parametrize("why", ["the server stops", "the run is deleted"])
async def test_a_response_without_the_end_of_the_run_is_aborted(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey, why: str
) -> None:
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=10) as client,
            client.stream("GET", wait_path(run)) as response,
        ):
            lines = response.aiter_lines()
            assert await anext(lines) == '{"state": "queued"}'
            await (server.hub.drain(1) if why == "the server stops" else airflow.delete_run(run))
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                await anext(lines)


@pytest.mark.parametrize("http", [HttpConnection, "httptools", "h11"])
async def test_a_stopping_server_aborts_many_responses_without_an_error(
    settings: Callable[..., Settings], run: RunKey, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def read_first_line_of_aborted_body(client: httpx.AsyncClient) -> str:
        async with client.stream("GET", wait_path(run)) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            waiting.release()
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                await anext(lines)
            return first

    waiting = asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=MANY)
    async with running_server(settings(), http=http) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url, timeout=10, limits=limits) as client:
            waiters = [asyncio.create_task(read_first_line_of_aborted_body(client)) for _ in range(MANY)]
            for _ in waiters:
                await asyncio.wait_for(waiting.acquire(), DEADLINE)
            await server.hub.drain(5)
            assert await asyncio.gather(*waiters) == ['{"state": "queued"}'] * MANY
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_cleared_run_is_waited_for(client: httpx.AsyncClient, airflow: AirflowSql, run: RunKey) -> None:
    await end_run(airflow, run)
    await airflow.clear(run, ["answer", "clean_up"])
    async with client.stream("GET", wait_path(run)) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == '{"state": "queued"}'
        await airflow.set_run(run, "running")
        assert await anext(lines) == '{"state": "running"}'
        await airflow.set_run(run, "failed")
        assert json.loads(await anext(lines))["state"] == "failed"
