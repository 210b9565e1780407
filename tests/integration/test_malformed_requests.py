"""Malformed requests get an HTTP error. They leave nothing open, and no traceback in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from stream_server.server.request_limits import MAX_PIPELINED_REQUESTS
from stream_server.server.websocket_connection import MAX_FRAMES_PER_SECOND
from stream_server.settings import Settings
from support.airflow_stub import AirflowStub
from support.raw_connection import UPGRADE, open_raw, request
from support.server import RunningServer, running_server
from support.streams import stream_path
from support.stub_callers import CallerPermissions, client_for
from support.waiting import eventually_async

MANY_RUNS = "/api/v2/stream"
ONE_RUN = stream_path(RunKey("chat", "manual__2026-11-22T10:00:00+00:00"))
RESULT = f"{ONE_RUN.removesuffix('stream')}result?timeout=30s"
SWITCHED = b"HTTP/1.1 101"
CHUNKED = "Transfer-Encoding: chunked"


pytestmark = pytest.mark.usefixtures("no_tracebacks")


@pytest.mark.parametrize(
    "sent",
    [
        request(MANY_RUNS, *UPGRADE, body=b"hello"),
        request(MANY_RUNS, *UPGRADE, method="POST"),
        request(MANY_RUNS, *UPGRADE, "Content-Length: 10000000"),
        request(MANY_RUNS, *UPGRADE, CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n",
    ],
)
async def test_a_websocket_handshake_that_is_no_plain_get_is_refused(server: RunningServer, sent: bytes) -> None:
    async with open_raw(server.url) as client:
        await client.send(sent)
        response = await client.read_response()
    assert response.status == 422
    assert "handshake" in response.problem["detail"]


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN])
@pytest.mark.parametrize(
    "headers", [["Cookie: a=" + "x" * 9000], [f"X-{number}: 1" for number in range(150)], ["X-Name: é"]]
)
async def test_a_websocket_handshake_within_the_limits_is_accepted(
    settings: Callable[..., Settings], run: RunKey, path: str, headers: list[str]
) -> None:
    async with running_server(settings(max_headers=200)) as server, open_raw(server.url) as client:
        await eventually_async(lambda: server.hub.is_live)
        await client.send(request(f"{path}?cursor={'x' * 9000}" if path != MANY_RUNS else path, *UPGRADE, *headers))
        assert (await client.reader.readuntil(b"\r\n")).startswith(SWITCHED)


async def test_a_websocket_handshake_beyond_the_limits_is_refused(server: RunningServer) -> None:
    async with open_raw(server.url) as client:
        await client.send(request(MANY_RUNS, *UPGRADE, "Cookie: a=" + "x" * 40_000))
        assert "STREAM_SERVER_MAX_HEADER_BYTES" in (await client.read_response()).problem["detail"]


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN, RESULT])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_websocket_handshake_behind_a_response_ends_both(
    server: RunningServer, run: RunKey, path: str, *, at_once: bool
) -> None:
    async with open_raw(server.url) as client:
        await client.send(request(path) + (request(MANY_RUNS, *UPGRADE) if at_once else b""))
        if not at_once:
            await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
            await client.send(request(MANY_RUNS, *UPGRADE))
        assert SWITCHED not in await client.read_to_end()
        await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the stream has ended")


TRIGGER = "/api/v2/dags/chat/dagRuns?wait_for_completion=true"
SESSION = "/api/v2/stream/session"


@pytest.fixture
async def forwarding_server(settings: Callable[..., Settings], run: RunKey) -> AsyncIterator[RunningServer]:
    async with running_server(settings(airflow_url="http://127.0.0.1:1", auth="none")) as server:
        yield server


@pytest.mark.parametrize("path", [TRIGGER, SESSION])
@pytest.mark.parametrize("body", [b"zz\r\n", b"2\r\n{}XX", b"fffffffffffffffff\r\n", b"-1\r\n"])
async def test_a_malformed_chunk_is_refused(forwarding_server: RunningServer, path: str, body: bytes) -> None:
    async with open_raw(forwarding_server.url) as client:
        await client.send(request(path, CHUNKED, method="POST") + body)
        assert (await client.read_response()).problem["title"] == "Not HTTP"


@pytest.mark.parametrize("path", [TRIGGER, SESSION])
async def test_a_request_body_that_breaks_off_ends_the_request(forwarding_server: RunningServer, path: str) -> None:
    before = asyncio.all_tasks()
    async with open_raw(forwarding_server.url) as client:
        await client.send(request(path, "Content-Length: 9", method="POST") + b"{")
        await eventually_async(lambda: asyncio.all_tasks() - before, what="the request has started")
    await eventually_async(lambda: not asyncio.all_tasks() - before, what="the request has ended")


INVALID_TEXT = b"\x81\x82\0\0\0\0\xff\xfe"
"""A masked text message that is not UTF-8 (RFC 6455 section 5.2)."""

CLOSED_AS_INVALID = b"\x03\xef"
"""Code 1007 of a close frame."""


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN])
async def test_text_that_is_not_utf8_closes_the_websocket(server: RunningServer, run: RunKey, path: str) -> None:
    async with open_raw(server.url) as client:
        await client.send(request(path, *UPGRADE))
        assert SWITCHED in await client.reader.readuntil(b"\r\n\r\n")
        await client.send(INVALID_TEXT)
        assert CLOSED_AS_INVALID in await client.read_to_end()
        await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the stream has ended")


TOO_LONG = ":" * 30_000
"""An id that is below the limits of the server. Its quoted form is above those of httpx."""


async def test_an_id_that_is_too_long_for_airflow_is_refused(
    settings: Callable[..., Settings], stub: AirflowStub, ada: CallerPermissions
) -> None:
    bounds = {"max_url_bytes": 2**17, "max_message_bytes": 2**17}
    async with running_server(settings(airflow_url=stub.url, **bounds)) as server, client_for(server, ada) as client:
        await eventually_async(lambda: server.hub.is_live)
        for path in (f"/api/v2/dags/{TOO_LONG}/dagRuns/r1", f"/api/v2/dags/chat/dagRuns/{TOO_LONG}"):
            assert (await client.get(f"{path}/result?timeout=0")).status_code == 414
            assert (await client.get(f"{path}/stream")).status_code == 414
            with pytest.raises(InvalidStatus, match="414"):
                await connect(f"{server.url.replace('http', 'ws', 1)}{path}/stream", additional_headers=ada.headers)
        assert (await client.post(f"/api/v2/dags/{TOO_LONG}/dagRuns?wait_for_completion=true")).status_code == 414
        async with connect(
            f"{server.url.replace('http', 'ws', 1)}{MANY_RUNS}", additional_headers=ada.headers, proxy=None
        ) as connection:
            for dag_id, run_id in ((TOO_LONG, "r1"), ("chat", TOO_LONG)):
                await connection.send(json.dumps({"op": "subscribe", "id": "1", "dag_id": dag_id, "run_id": run_id}))
                assert json.loads(await connection.recv())["status"] == 414


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN, RESULT])
async def test_a_client_that_pipelines_and_disconnects_is_noticed(
    server: RunningServer, run: RunKey, path: str
) -> None:
    before = asyncio.all_tasks()
    async with open_raw(server.url) as client:
        await client.send(request(path) + request("/health"))
        await eventually_async(lambda: server.hub.statistics().subscriptions == 1, what="the stream has started")
        client.writer.transport.abort()
    await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the stream has ended")
    await eventually_async(lambda: not asyncio.all_tasks() - before, what="the request has ended")


async def test_too_many_pipelined_requests_end_the_connection(server: RunningServer, run: RunKey) -> None:
    async with open_raw(server.url) as client:
        await client.send(request(ONE_RUN))
        await client.reader.readuntil(b"event: snapshot")
        await client.send(request("/health") * (MAX_PIPELINED_REQUESTS + 1))
        assert b"HTTP/1.1" not in await client.read_to_end()
        await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the stream has ended")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"model":"\xff","messages":[]}'),
        ("/v1/responses", b'{"model":"\xff","input":""}'),
        ("/api/v2/dags/chat/chat", b'{"id":"\xff","messages":[]}'),
        ("/api/v2/dags/chat/dagRuns?wait_for_completion=true", b'{"conf":{"a":"\xff"}}'),
        ("/api/v2/dags/chat/dagRuns/r/taskInstances/t/input", b'{"chosen_options":["\xff"]}'),
        ("/api/v2/stream/tickets", b'{"paths":["\xff"]}'),
        ("/api/v2/stream/session", b'{"token":"\xff"}'),
    ],
)
async def test_bytes_that_are_no_utf_8_are_refused(
    auth_server: RunningServer, ada: CallerPermissions, path: str, body: bytes
) -> None:
    async with client_for(auth_server, ada) as client:
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == (400 if path.startswith("/v1") else 422), answer.text
    assert "body must be" in answer.text


@pytest.mark.parametrize("message", [b'{"op":"ping","id":"\xff"}', b'{"op":"\xff"}'])
async def test_a_message_that_is_no_utf_8_gets_an_error(server: RunningServer, message: bytes) -> None:
    async with connect(server.url.replace("http", "ws") + MANY_RUNS) as connection:
        await connection.send(message)
        assert json.loads(await connection.recv())["type"] == "error"


EMPTY_FRAMES = {
    "text": b"\x81\x80",
    "part": b"\x01\x80",
    "continuation": b"\x00\x80",
    "ping": b"\x89\x80",
    "pong": b"\x8a\x80",
}
MASK = b"\0" * 4


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN])
@pytest.mark.parametrize("kind", ["text", "continuation", "ping", "pong"])
async def test_too_many_frames_close_the_websocket(server: RunningServer, run: RunKey, path: str, kind: str) -> None:
    frames = (EMPTY_FRAMES[kind] + MASK) * (2 * MAX_FRAMES_PER_SECOND)
    if kind == "continuation":
        frames = EMPTY_FRAMES["part"] + MASK + frames
    async with open_raw(server.url) as client:
        await client.send(request(path, *UPGRADE))
        assert SWITCHED in await client.reader.readuntil(b"\r\n\r\n")
        await client.send(frames)
        assert b"frames in a second" in await client.read_to_end()
        await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the stream has ended")


@pytest.mark.parametrize("path", [MANY_RUNS, ONE_RUN])
@pytest.mark.parametrize("kind", ["text", "continuation", "ping", "invalid"])
async def test_frames_before_the_handshake_leave_nothing(
    server: RunningServer, run: RunKey, caplog: pytest.LogCaptureFixture, path: str, kind: str
) -> None:
    frames = (EMPTY_FRAMES.get(kind, INVALID_TEXT) + MASK) * (2 * MAX_FRAMES_PER_SECOND)
    for sent in (frames, b"\xff" * 4000):
        async with open_raw(server.url) as client:
            # The handshake is accepted in a later turn of the event loop. What comes in its segment is dropped.
            await client.send(request(path, *UPGRADE))
            await client.send(sent)
            await client.reader.read(1)
    await eventually_async(lambda: not server.hub.statistics().subscriptions, what="the streams have ended")
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
