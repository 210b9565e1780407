"""Trailers and chunks of request bodies."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from stream_server.server.request_limits import MAX_CHUNKS
from stream_server.settings import Settings
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import RUNS
from support.raw_connection import open_raw, request
from support.server import RunningServer, running_server
from support.waiting import eventually_async

pytestmark = pytest.mark.usefixtures("no_tracebacks")

CHUNKED = ("Transfer-Encoding: chunked", "Content-Type: application/json", "Connection: close")
SESSION = "/api/v2/stream/session"


def chunked(path: str, *trailers: str, headers: tuple[str, ...] = (), body: bytes = b"{}") -> bytes:
    end = "\r\n".join(["0", *trailers, "", ""]).encode()
    return request(path, *CHUNKED, *headers, method="POST") + b"%x\r\n%b\r\n" % (len(body), body) + end


@pytest.mark.parametrize("trailer", ["Authorization: Bearer a", "Cookie: _token=a", "Origin: https://evil.example"])
async def test_a_trailer_is_no_header(trigger_server: RunningServer, stub: AirflowStub, trailer: str) -> None:
    async with open_raw(trigger_server.url) as client:
        await client.send(chunked(RUNS, trailer))
        assert (await client.read_response()).status == 200
    (received,) = stub.triggers
    assert not {"authorization", "cookie"} & received.headers.keys()


async def test_a_trailer_names_no_address(settings: Callable[..., Settings]) -> None:
    configured = settings(trusted_proxies=("127.0.0.1",), max_joins_per_second=0.2)
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        statuses = []
        for number in range(4):
            async with open_raw(server.url) as client:
                forwarded = "X-Forwarded-For: 203.0.113.7"
                await client.send(chunked(SESSION, f"X-Forwarded-For: 203.0.113.{number}", headers=(forwarded,)))
                statuses.append((await client.read_response()).status)
    assert statuses == [422, 422, 429, 429]


@pytest.mark.parametrize("trailers", [[f"X-{number}: 1" for number in range(200)], ["X: " + "x" * 40_000]])
async def test_trailers_count_as_headers_do(trigger_server: RunningServer, trailers: list[str]) -> None:
    async with open_raw(trigger_server.url) as client:
        await client.send(chunked(RUNS, *trailers))
        # The request has begun: the connection ends without an answer, or with the one that names the limit.
        received = await client.read_to_end()
    assert not received or b"STREAM_SERVER_MAX_HEADER" in received


async def test_a_trailer_without_end_is_refused(trigger_server: RunningServer) -> None:
    async with open_raw(trigger_server.url) as client:
        await client.send(request(RUNS, *CHUNKED, method="POST") + b"0\r\nX: ")
        for _ in range(40):
            await client.send(b"x" * 65_536)
        received = await client.read_to_end()
    assert not received or b"STREAM_SERVER_MAX_HEADER" in received


async def test_a_body_of_tiny_chunks_is_refused_soon(trigger_server: RunningServer, stub: AirflowStub) -> None:
    async with open_raw(trigger_server.url) as client:
        began = time.thread_time()
        await client.send(request(RUNS, *CHUNKED, method="POST") + b"1\r\nx\r\n" * (MAX_CHUNKS + 1))
        assert b"chunks" in await client.read_to_end()
        # The server runs in this thread.
        assert time.thread_time() - began < 1.0
    assert stub.triggers == []


async def test_a_body_of_many_chunks_is_read(trigger_server: RunningServer, stub: AirflowStub) -> None:
    body = b'{"conf": {"a": "' + b"x" * 4000 + b'"}}'
    async with open_raw(trigger_server.url) as client:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        await client.send(request(RUNS, *CHUNKED, method="POST") + chunks + b"0\r\n\r\n")
        assert (await client.read_response()).status == 200
    (received,) = stub.triggers
    assert received.body == body
