"""Each limit is enforced, named in the refusal, and documented; it does not affect callers that keep within it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.multi_process_server import MultiProcessServer
from support.raw_connection import UPGRADE, open_raw, request
from support.server import running_server, server_process
from support.streams import sse, stream_path, types, websocket
from support.waiting import eventually_answered, eventually_async

Make = Callable[..., Settings]

FROM_AFAR = {"X-Forwarded-For": "203.0.113.7"}
"""The address of a client according to a trusted proxy: clients on this machine, such as the tests, have no limits."""

PROXIED = {"trusted_proxies": "127.0.0.1"}


@pytest.mark.parametrize(
    ("sent", "status", "expected"),
    [
        (request("/health?" + "x" * 400), 414, "STREAM_SERVER_MAX_URL_BYTES"),
        (b"GET /" + b"x" * 400, 414, "STREAM_SERVER_MAX_URL_BYTES"),
        (request("/health", "X-Large: " + "x" * 2000), 431, "STREAM_SERVER_MAX_HEADER_BYTES"),
        (request("/health", *(f"X-{n}: {n}" for n in range(20))), 431, "STREAM_SERVER_MAX_HEADERS"),
        (request("/health", "X-Endless: " + "x" * 10_000)[:-4], 431, "STREAM_SERVER_MAX_HEADER_BYTES"),
        (request("/health?" + "x" * 400, *UPGRADE), 414, "STREAM_SERVER_MAX_URL_BYTES"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40, 400, "RFC 9112"),
        (b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n", 400, "RFC 9112"),
    ],
)
async def test_too_large_request_is_refused(settings: Make, sent: bytes, status: int, expected: str) -> None:
    bounds = {"max_url_bytes": 300, "max_header_bytes": 1500, "max_headers": 15}
    async with running_server(settings(**bounds)) as server, open_raw(server.url) as client:
        await client.send(sent)
        answer = await client.read_response()
    assert (answer.status, expected in answer.problem["detail"]) == (status, True), answer
    assert answer.headers["connection"] == "close"


async def test_request_within_the_limits_is_answered(settings: Make) -> None:
    bounds = {"max_url_bytes": 300, "max_header_bytes": 1500, "max_headers": 15}
    async with running_server(settings(**bounds)) as server, open_raw(server.url) as client:
        await client.send(request("/health?" + "x" * 280, "X-Large: " + "x" * 1400))
        await client.send(request("/health", *(f"X-{n}: {n}" for n in range(12)), "Connection: close"))
        assert (await client.read_to_end()).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"\r\n\r\n",
        request("/health")[:-2],
        request("/api/v2/stream", *UPGRADE)[:-2],
        request("/api/v2/dags/d/dagRuns?wait_for_completion=true", "Content-Length: 9", method="POST") + b"{",
    ],
)
async def test_too_slow_request_is_refused(settings: Make, sent: bytes) -> None:
    configured = settings(request_timeout="200ms", airflow_url="http://127.0.0.1:1", auth="none")
    async with running_server(configured) as server, open_raw(server.url) as client:
        await client.send(sent)
        if sent.strip():
            answer = await client.read_response()
            assert (answer.status, answer.problem["title"]) == (408, "Request too slow")
            assert "STREAM_SERVER_REQUEST_TIMEOUT" in answer.problem["detail"]
        else:
            assert await client.read_to_end() == b""


async def test_silent_connection_is_closed(settings: Make) -> None:
    async with running_server(settings(request_timeout="200ms")) as server, open_raw(server.url) as client:
        assert await client.read_to_end() == b""


async def test_request_timeout_does_not_end_streams_and_waiting_requests(settings: Make, run: RunKey) -> None:
    configured = settings(request_timeout="200ms", ping_interval="300ms")
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with (
            sse(server.url, run) as events,
            websocket(server.url, run) as connection,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            waited = await client.get(f"{stream_path(run).removesuffix('stream')}result?timeout=1s")
            assert waited.status_code == 202
            assert types([await events.next() for _ in range(3)]) == ["snapshot", "ping", "ping"]
            assert [json.loads(await connection.recv())["type"] for _ in range(3)] == ["snapshot", "ping", "ping"]


async def test_incomplete_request_behind_a_stream_aborts_the_connection(settings: Make, run: RunKey) -> None:
    async with running_server(settings(request_timeout="200ms")) as server, open_raw(server.url) as client:
        await eventually_async(lambda: server.hub.is_live)
        await client.send(request(stream_path(run)))
        await client.reader.readuntil(b"event: snapshot")
        await client.send(b"GET /health HTTP/1.1\r\nHo")
        assert b"HTTP/1.1" not in await client.read_to_end()
        await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_full_server_refuses_streams_and_answers_health(settings: Make, run: RunKey) -> None:
    async with running_server(settings(max_connections=20)) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        for _ in range(20):
            await stack.enter_async_context(websocket(server.url, run))
        async with open_raw(server.url) as client:
            await client.send(request(stream_path(run)))
            answer = await client.read_response()
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert answer.problem["title"] == "Server full"
        with pytest.raises(InvalidStatus, match="503"):
            await connect(server.url.replace("http", "ws", 1) + stream_path(run), proxy=None)
        async with httpx.AsyncClient(base_url=server.url) as operator:
            assert (await operator.get("/health")).status_code == 200
            # A few connections above the limit are accepted for this; further ones are closed.
            silent = [await stack.enter_async_context(open_raw(server.url)) for _ in range(2)]
            assert await silent[-1].read_to_end() == b""


async def test_streams_of_a_caller_are_limited(settings: Make, run: RunKey) -> None:
    async with running_server(settings(max_streams_per_caller=3, **PROXIED)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with AsyncExitStack() as stack:
            for opened in (sse, websocket, sse):
                await stack.enter_async_context(opened(server.url, run, headers=FROM_AFAR))
            async with httpx.AsyncClient(base_url=server.url, headers=FROM_AFAR) as client:
                refused = await client.get(stream_path(run))
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
                assert "STREAM_SERVER_MAX_STREAMS_PER_CALLER" in refused.json()["detail"]
                assert refused.json()["title"] == "Too many streams"
            with pytest.raises(InvalidStatus, match="429"):
                await stack.enter_async_context(websocket(server.url, run, headers=FROM_AFAR))
            # Other callers are not affected.
            async with sse(server.url, run, headers={"X-Forwarded-For": "203.0.113.8"}) as events:
                assert (await events.next())["type"] == "snapshot"
        async with sse(server.url, run, headers=FROM_AFAR) as events:
            assert (await events.next())["type"] == "snapshot"


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_of_a_multiplexed_connection_count(
    journal: str, run: RunKey, unused_tcp_port: int, workers: int
) -> None:
    """The limit of a caller is the same whatever the transport."""
    limits = {"STREAM_SERVER_MAX_STREAMS_PER_CALLER": "20", "STREAM_SERVER_TRUSTED_PROXIES": "127.0.0.1"}
    arguments = ("--port", str(unused_tcp_port), "--workers", str(workers))
    async with server_process(*arguments, STREAM_SERVER_DATABASE_URL=journal, **limits) as process:
        server = MultiProcessServer(process, f"http://127.0.0.1:{unused_tcp_port}", None)
        log_reader = asyncio.create_task(server.read_log())
        await server.wait_until_ready()
        async with connect(
            server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None, additional_headers=FROM_AFAR
        ) as connection:

            async def reply_to(**message: str) -> Any:
                await connection.send(json.dumps(message))
                while (frame := json.loads(await connection.recv()))["type"] not in {"ack", "error"}:
                    pass
                return frame

            async def subscribe(name: str) -> Any:
                return await reply_to(op="subscribe", id=name, dag_id=run.dag_id, run_id=run.run_id)

            replies = [await subscribe(str(number)) for number in range(21)]
            assert [reply["type"] for reply in replies] == [*["ack"] * 20, "error"]
            refused = replies[-1]
            assert (refused["id"], refused["status"], refused["title"]) == ("20", 429, "Too many streams")
            assert (await reply_to(op="unsubscribe", id="3"))["type"] == "ack"
            assert (await subscribe("20"))["type"] == "ack"
            assert (await subscribe("21"))["title"] == "Too many streams"
        process.terminate()
        await log_reader


@pytest.mark.parametrize("direct_writes", [True, False])
async def test_slot_is_released_however_a_stream_ends(settings: Make, run: RunKey, *, direct_writes: bool) -> None:
    async with running_server(settings(max_streams_per_caller=1, **PROXIED), direct_writes=direct_writes) as server:
        await eventually_async(lambda: server.hub.is_live)

        async def is_admitted() -> bool:
            async with httpx.AsyncClient(base_url=server.url, headers=FROM_AFAR) as client:
                return (await client.get("/api/v2/stream?nothing=1")).status_code == 422

        for opened in (sse, websocket):
            async with opened(server.url, run, headers=FROM_AFAR):
                assert not await is_admitted()
            await eventually_answered(is_admitted, what="the slot is released")


async def test_refused_event_source_reconnects_later(settings: Make, run: RunKey) -> None:
    event_source = {**FROM_AFAR, "Accept": "text/event-stream"}
    async with running_server(settings(max_streams_per_caller=1, **PROXIED)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run, headers=event_source), sse(server.url, run, headers=event_source) as events:
            assert events.response.status_code == 200
            (close,) = await events.rest()
    assert (close["type"], close["code"], close["reconnect"], close["retry_ms"]) == ("close", 4010, True, 5000)


async def test_joins_of_a_caller_are_limited_per_second(settings: Make, run: RunKey) -> None:
    async with running_server(settings(max_joins_per_second=0.5, **PROXIED)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url, headers=FROM_AFAR) as client:
            answers = [await client.get("/api/v2/stream?nothing=1") for _ in range(6)]
            assert [answer.status_code for answer in answers] == [*[422] * 5, 429]
            assert answers[-1].json()["title"] == "Too many joins"
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
            assert (await client.get("/health")).status_code == 200
        other = {"X-Forwarded-For": "203.0.113.8"}
        url = server.url.replace("http", "ws", 1) + "/api/v2/stream"
        async with connect(url, additional_headers=other, proxy=None) as connection:
            subscribe = {"op": "subscribe", "id": "", "dag_id": "d"}
            for number in range(5):
                await connection.send(json.dumps({**subscribe, "id": str(number)}))
            replies = [json.loads(await connection.recv()) for _ in range(5)]
        assert [one.get("status") for one in replies if one["type"] == "error"] == [429]


async def test_forwarded_address_of_an_untrusted_proxy_is_ignored(settings: Make, run: RunKey) -> None:
    async with (
        running_server(settings(max_joins_per_second=0.1)) as server,
        httpx.AsyncClient(base_url=server.url, headers=FROM_AFAR) as client,
    ):
        statuses = {(await client.get("/api/v2/stream?nothing=1")).status_code for _ in range(5)}
    assert statuses == {422}


async def test_caller_is_limited_by_identity(settings: Make, airflow: AirflowSql, stub: AirflowStub) -> None:
    key = RunKey("chat", "r1")
    await airflow.trigger(key, stub.version, list(CHAIN))
    stub.instead = _only_ada_and_bob
    ada, bob = ({**FROM_AFAR, "Authorization": f"Bearer {name}"} for name in ("ada", "bob"))
    limited = settings(airflow_url=stub.url, max_streams_per_caller=1, max_joins_per_second=0.3, **PROXIED)
    async with running_server(limited) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, key, headers=ada), sse(server.url, key, headers=bob) as events:
            assert (await events.next())["type"] == "snapshot"
            async with httpx.AsyncClient(base_url=server.url) as client:
                second = await client.get(stream_path(key), headers=ada)
                assert (second.status_code, second.json()["title"]) == (429, "Too many streams")
                # The third and last join that their address allows.
                assert (await client.get(stream_path(key), headers=FROM_AFAR)).status_code == 401
                made_up = await client.get(stream_path(key), headers={**FROM_AFAR, "Authorization": "Bearer eve"})
                assert made_up.json()["title"] == "Too many joins"
        async with sse(server.url, key, headers=bob) as events:
            assert (await events.next())["type"] == "snapshot"


@pytest.mark.parametrize("path", ["run", "many"])
async def test_caller_of_an_auth_message_is_limited_by_identity(
    settings: Make, airflow: AirflowSql, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Four joins at once, and another one in four minutes.
    monkeypatch.setattr("stream_server.auth.rate_limits.BURST_SECONDS", 1000.0)
    key = RunKey("chat", "r1")
    await airflow.trigger(key, stub.version, list(CHAIN))
    stub.instead = _only_ada_and_bob
    limited = settings(airflow_url=stub.url, max_streams_per_caller=1, max_joins_per_second=0.004, **PROXIED)
    address = stream_path(key) if path == "run" else "/api/v2/stream"

    async with running_server(limited) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)

        async def connect_as(name: str) -> ClientConnection:
            url = server.url.replace("http", "ws", 1) + address
            connection = await stack.enter_async_context(connect(url, additional_headers=FROM_AFAR, proxy=None))
            await connection.send(json.dumps({"op": "auth", "token": name}))
            return connection

        async def receive(connection: ClientConnection) -> dict[str, Any]:
            frame: dict[str, Any] = json.loads(await asyncio.wait_for(connection.recv(), 10))
            return frame

        ada = await connect_as("ada")
        assert (await receive(ada))["type"] == "ack"
        bob = await connect_as("bob")
        assert (await receive(bob))["type"] == "ack"
        # Their address has free slots again, but `ada` has none.
        second = await connect_as("ada")
        error, close = await receive(second), await receive(second)
        assert (error["status"], error["title"]) == (429, "Too many streams")
        assert (close["code"], close["reconnect"], close["retry_ms"]) == (4010, True, 5000)
        with pytest.raises(ConnectionClosed, match="4010"):
            await second.recv()
        if path == "many":
            # `ada` may have one stream. Of the four joins, one opened the connection and one was refused.
            statuses: list[int] = []
            for number in range(3):
                await ada.send(json.dumps({"op": "subscribe", "id": str(number), "dag_id": "chat", "run_id": "r1"}))
            while len(statuses) < 3:
                if (frame := await receive(ada))["type"] in {"ack", "error"}:
                    statuses.append(frame.get("status", 200))
            assert sorted(statuses) == [200, 429, 429]
            await bob.send(json.dumps({"op": "auth", "token": "ada"}))
            assert (await receive(bob))["type"] == "ack"
            await bob.send(json.dumps({"op": "subscribe", "id": "a", "dag_id": "chat", "run_id": "r1"}))
            assert (await receive(bob))["status"] == 429


async def _only_ada_and_bob(received: ReceivedRequest) -> Response | None:
    known = received.headers.get("authorization") in {"Bearer ada", "Bearer bob"}
    return None if known else JSONResponse({"detail": "Not authenticated"}, 401)


async def test_too_large_message_closes_its_websocket(settings: Make) -> None:
    async with (
        running_server(settings(max_message_bytes=300)) as server,
        connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection,
    ):
        await connection.send("x" * 301)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_websocket_without_subscriptions_is_closed(settings: Make, run: RunKey) -> None:
    async with running_server(settings(idle_timeout="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        address = server.url.replace("http", "ws", 1) + "/api/v2/stream"
        async with connect(address, proxy=None) as idle, connect(address, proxy=None) as busy:
            await busy.send(json.dumps({"op": "subscribe", "id": "a", "dag_id": run.dag_id, "run_id": run.run_id}))
            with pytest.raises(ConnectionClosed) as closed:
                await idle.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, "no stream" in closed.value.rcvd.reason) == (4510, True)
            assert [json.loads(await busy.recv())["type"] for _ in range(2)] == ["ack", "snapshot"]
            await busy.send(json.dumps({"op": "unsubscribe", "id": "a"}))
            assert json.loads(await busy.recv())["type"] == "ack"
            with pytest.raises(ConnectionClosed, match="4510"):
                await busy.recv()


async def test_operators_port_is_separate(settings: Make, run: RunKey, unused_tcp_port: int) -> None:
    paths = ("/health", "/ready", "/metrics", "/openapi.json", "/asyncapi.json")
    configured = settings(admin_port=unused_tcp_port, max_connections=1)
    async with (
        running_server(configured) as server,
        httpx.AsyncClient(base_url=server.url) as public,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}") as operator,
    ):
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            assert {(await operator.get(path)).status_code for path in paths} == {200}
            assert (await operator.get(stream_path(run))).status_code == 404
        await eventually_async(lambda: server.hub.statistics().subscriptions == 0)
        await operator.aclose()
        assert {(await public.get(path)).status_code for path in paths} == {404}
