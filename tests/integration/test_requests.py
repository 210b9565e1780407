"""Requests for streams: parameters, headers, refusals, origins and cookies."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import sse, stream_path, types, websocket
from support.waiting import eventually_async


@pytest.mark.parametrize("encoded", [True, False])
async def test_run_ids_work_percent_encoded_or_not(server: RunningServer, run: RunKey, *, encoded: bool) -> None:
    path = stream_path(run) if encoded else f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/stream"
    assert ("%3A" in path) == encoded
    async with connect(server.url.replace("http", "ws", 1) + path, proxy=None) as connection:
        assert json.loads(await connection.recv())["run_id"] == run.run_id


async def test_an_unknown_run_is_404_before_any_stream(
    server: RunningServer, run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = RunKey(run.dag_id, "no-such-run")
    async with sse(server.url, unknown) as events:
        problem = json.loads(await events.response.aread())
    assert events.response.status_code == 404
    assert events.response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["title"]) == (404, "Run not found")
    assert "no-such-run" in problem["detail"]

    with pytest.raises(InvalidStatus) as refused:
        async with websocket(server.url, unknown):
            pass
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body or b"")["title"] == "Run not found"
    assert server.hub.statistics().runs == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/api/v2/dags/chat/stream", 404, "no WebSocket at /api/v2/dags/chat/stream"),
        ("/nowhere", 404, "no WebSocket at /nowhere"),
        ("/api/v2/stream?dag_id=chat", 422, "no query parameter 'dag_id'; it has ping"),
    ],
)
async def test_a_websocket_handshake_is_refused_with_a_problem_body(
    server: RunningServer, caplog: pytest.LogCaptureFixture, path: str, status: int, detail: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(server.url.replace("http", "ws", 1) + path, proxy=None):
            pass
    answer = refused.value.response
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in json.loads(answer.body or b"")["detail"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_wrong_method_returns_405_with_the_allowed_ones(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        refused = await client.post("/api/v2/stream")
    assert refused.status_code == 405
    assert refused.json()["detail"] == f"/api/v2/stream allows {refused.headers['allow']}, not POST"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?result=missing", "has no task 'missing'; its tasks are: answer, ask, clean_up"),
        ("?result=", "must be the ID of a task"),
        ("?until=never", "must be 'result' or 'run'"),
        ("?resutl=answer", "no query parameter 'resutl'; it has confirm, cursor, lastEventId, ping, result, until"),
    ],
)
async def test_an_invalid_parameter_returns_422_with_the_allowed_values(
    server: RunningServer, run: RunKey, query: str, detail: str
) -> None:
    async with sse(server.url, run, query) as events:
        problem = json.loads(await events.response.aread())
    assert events.response.status_code == 422
    assert detail in problem["detail"]
    with pytest.raises(InvalidStatus) as refused:
        async with websocket(server.url, run, query):
            pass
    assert refused.value.response.status_code == 422


async def test_an_unknown_path_returns_a_problem_body(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        missing, wrong = await client.get("/nothing"), await client.post("/health")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert {answer.headers["content-type"] for answer in (missing, wrong)} == {"application/problem+json"}


async def test_a_disconnect_closes_the_subscription(server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events, websocket(server.url, run) as connection:
        await events.next()
        await connection.recv()
        assert server.hub.statistics().subscriptions == 2
    await eventually_async(lambda: server.hub.statistics()[:2] == (0, 0), what="the subscriptions are closed")


async def test_an_idle_stream_sends_pings(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings(ping_interval="50ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events, websocket(server.url, run) as connection:
            assert types([await events.next(), await events.next(), await events.next()]) == [
                *("snapshot", "ping", "ping")
            ]
            await connection.recv()
            assert json.loads(await connection.recv()) == {"type": "ping"}


async def test_each_client_gets_a_different_retry_time(server: RunningServer, run: RunKey) -> None:
    times = []
    async with httpx.AsyncClient(base_url=server.url) as client:
        for _ in range(5):
            async with client.stream("GET", stream_path(run)) as response:
                first = await anext(response.aiter_lines())
            assert first.startswith("retry: "), "before all frames"
            times.append(int(first.removeprefix("retry: ")))
    assert all(1000 <= time <= 3000 for time in times)
    assert len(set(times)) > 1


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_the_headers_keep_proxies_from_buffering(server: RunningServer, run: RunKey, accept: str) -> None:
    async with sse(server.url, run, headers={"Accept-Encoding": "gzip", "Accept": accept}) as events:
        headers = events.response.headers
    assert headers["content-type"].startswith(accept)
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in headers


async def test_no_websocket_is_compressed(server: RunningServer, run: RunKey) -> None:
    """Compression needs memory for each client (RFC 7692) and delays frames."""
    async with websocket(server.url, run) as connection:
        assert connection.request is not None
        assert connection.response is not None
        assert "permessage-deflate" in connection.request.headers["Sec-WebSocket-Extensions"]
        assert "Sec-WebSocket-Extensions" not in connection.response.headers


async def test_only_the_last_frame_of_a_batch_has_an_id(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run, "?until=run") as events:
        await events.next()
        async with airflow.connection.transaction():
            await airflow.set_task(run, "ask", "scheduled")
            await airflow.set_task(run, "answer", "scheduled")
        await events.next()
        await events.next()
    assert [identity is None for identity in events.ids] == [False, True, False]


async def test_an_event_source_that_reconnects_after_the_end_gets_204(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    await airflow.complete_chain(run)
    async with sse(server.url, run) as events:
        await events.rest()
    last: Any = events.ids[-1]
    async with sse(server.url, run, headers={"Last-Event-ID": last}) as events:
        assert events.response.status_code == 204
    async with sse(server.url, run, headers={"Last-Event-ID": "damaged"}) as events:
        assert events.response.status_code == 200


async def test_a_head_request_streams_nothing(server: RunningServer, run: RunKey) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.head(stream_path(run))
    assert (answer.status_code, answer.content) == (200, b"")
    await eventually_async(lambda: server.hub.statistics().runs == 0)


@pytest.fixture
async def cors_server(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """A server with one allowed origin."""
    async with running_server(settings(cors_origins=("https://app.example.com",))) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "http://[", "http://a:99999999"])
async def test_a_page_of_another_origin_opens_no_websocket(
    cors_server: RunningServer, run: RunKey, origin: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with websocket(cors_server.url, run, headers={"Origin": origin}):
            pass
    assert refused.value.response.status_code == 403
    assert "STREAM_SERVER_CORS_ORIGINS" in json.loads(refused.value.response.body or b"")["detail"]


@pytest.mark.parametrize("origin", ["our own", "https://app.example.com"])
async def test_a_page_of_a_known_origin_opens_a_websocket(cors_server: RunningServer, run: RunKey, origin: str) -> None:
    async with websocket(
        cors_server.url, run, headers={"Origin": origin.replace("our own", cors_server.url)}
    ) as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"


@pytest.mark.parametrize(
    ("configured", "origin", "credentials"),
    [
        ("https://app.example.com", "https://app.example.com", "true"),
        ("https://app.example.com", "https://evil.example.com", None),
        ("*", "https://app.example.com", None),
    ],
)
async def test_only_pages_of_configured_origins_may_send_cookies(
    settings: Callable[..., Settings], configured: str, origin: str, credentials: str | None
) -> None:
    preflight = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Idempotency-Key",
    }
    async with running_server(settings(cors_origins=(configured,))) as server, httpx.AsyncClient() as client:
        answer = await client.options(f"{server.url}/api/v2/dags/d/dagRuns", headers=preflight)
    allowed = answer.headers if answer.status_code == 200 else {}
    assert allowed.get("Access-Control-Allow-Credentials") == credentials


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "_token", "__id_token"])
async def test_a_token_in_a_url_is_refused(server: RunningServer, run: RunKey, name: str) -> None:
    async with sse(server.url, run, f"?{name}=abc.def.ghi") as events:
        problem = json.loads(await events.response.aread())
    assert (events.response.status_code, problem["title"]) == (400, "Token in URL")
    assert "header Authorization" in problem["detail"]
    assert "abc" not in problem["detail"]
    with pytest.raises(InvalidStatus) as refused:
        async with websocket(server.url, run, f"?{name}=abc.def.ghi"):
            pass
    assert refused.value.response.status_code == 400


async def test_cookies_are_accepted_from_pages_of_known_origins_only(cors_server: RunningServer, run: RunKey) -> None:
    statuses = {}
    for origin in (None, cors_server.url, "https://app.example.com", "https://evil.example.com", "null", "http://["):
        headers = {"Cookie": "_token=a", **({} if origin is None else {"Origin": origin})}
        async with sse(cors_server.url, run, headers=headers) as events:
            statuses[origin] = events.response.status_code
    assert [statuses.pop(origin) for origin in ("https://evil.example.com", "null", "http://[")] == [403] * 3
    assert set(statuses.values()) == {200}


async def test_all_origins_are_allowed_without_cookies_only(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings(cors_origins=("*",))) as server:
        await eventually_async(lambda: server.hub.is_live)
        foreign = {"Origin": "https://evil.example.com"}
        async with websocket(server.url, run, headers=foreign) as connection:
            assert json.loads(await connection.recv())["type"] == "snapshot"
        with pytest.raises(InvalidStatus) as refused:
            async with websocket(server.url, run, headers={**foreign, "Cookie": "_token=a"}):
                pass
    assert refused.value.response.status_code == 403
