"""Many clients at once: slow clients, vanished clients, and all clients at the stop of the server."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Reset
from stream_server.protocol.wire import Wire
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server, server_process
from support.streams import DEADLINE, frames_of, sse, stream_path, types, unread, websocket
from support.waiting import eventually_async

SO_ATTACH_FILTER = 26
"""Linux: see socket(7)."""

CLIENTS = 500


def vanish(sock: socket.socket) -> None:
    """Make a socket drop all packets, so that the kernel acknowledges nothing."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop_all)))


def large(size: int) -> Wire:
    return Wire(Reset(dag_id="x" * size, run_id="", reason="cleared"))


def push(server: RunningServer, wire: Wire) -> None:
    for subscription in server.subscriptions():
        subscription.push([wire])


@pytest.fixture
async def small_queue_server(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """A server that queues few bytes for a slow client."""
    async with running_server(settings(max_queued_bytes=100_000, ping_interval=0.5)) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("upgrade", [False, True], ids=["sse", "websocket"])
async def test_a_client_that_does_not_read_is_closed_and_delays_no_other(
    small_queue_server: RunningServer, run: RunKey, upgrade: bool
) -> None:
    wire = large(50_000)
    async with sse(small_queue_server.url, run) as events, unread(small_queue_server.url, run, upgrade=upgrade):
        await events.next()

        async def push_one_more() -> bool:
            """Push a frame; the other client receives it, whatever the state of the slow one."""
            push(small_queue_server, wire)
            while (await events.next())["type"] == "ping":
                pass
            return any(one.closed is not None for one in small_queue_server.subscriptions())

        for _ in range(500):
            if await push_one_more():
                break
        (closed,) = [one.closed for one in small_queue_server.subscriptions() if one.closed is not None]
        assert closed.code == CloseCode.SLOW
        assert closed.reconnect
        # The client acknowledges nothing, so the kernel aborts the connection in the end.
        await eventually_async(lambda: small_queue_server.hub.statistics().subscriptions == 1, within=20)
        push(small_queue_server, wire)
        assert (await events.until("reset"))[-1]["dag_id"] == "x" * 50_000


async def test_a_slow_client_that_reads_again_gets_the_close_code(
    settings: Callable[..., Settings], run: RunKey
) -> None:
    async with running_server(settings(max_queued_bytes=100_000)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with unread(server.url, run, upgrade=False) as sock:
            wire = large(50_000)

            async def closed() -> bool:
                push(server, wire)
                await asyncio.sleep(0)
                return any(one.closed is not None for one in server.subscriptions())

            for _ in range(2000):
                if await closed():
                    break
            loop, read = asyncio.get_running_loop(), b""
            while not read.endswith(b"0\r\n\r\n"):
                data = await asyncio.wait_for(loop.sock_recv(sock, 2**20), DEADLINE)
                assert data, "the body has a clean end"
                read = read[-1000:] + data
    *_, last = read.split(b"data: ")
    assert json.loads(last.split(b"\n")[0])["code"] == CloseCode.SLOW


@pytest.mark.parametrize("upgrade", [False, True], ids=["sse", "websocket"])
async def test_a_client_that_vanishes_is_detected(
    small_queue_server: RunningServer, run: RunKey, upgrade: bool, airflow: AirflowSql, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with (
            sse(small_queue_server.url, run) as events,
            unread(small_queue_server.url, run, upgrade=upgrade) as sock,
        ):
            await events.next()
            vanish(sock)
            await airflow.set_task(run, "ask", "scheduled")
            await events.until("task")
            await eventually_async(lambda: small_queue_server.hub.statistics().subscriptions == 1, within=20)
            await airflow.set_task(run, "ask", "queued")
            await events.until("task")
    assert caplog.records == []


@pytest.mark.parametrize("size", [10, 1_000, 100_000])
async def test_messages_of_all_lengths_arrive_whole(server: RunningServer, run: RunKey, size: int) -> None:
    """RFC 6455 section 5.2 has three ways to write a length."""
    async with websocket(server.url, run) as connection, sse(server.url, run) as events:
        await connection.recv()
        await events.next()
        push(server, large(size))
        assert json.loads(await connection.recv())["dag_id"] == "x" * size
        assert (await events.next())["dag_id"] == "x" * size


async def test_unexpected_websocket_messages_have_no_effect(
    server: RunningServer, run: RunKey, airflow: AirflowSql
) -> None:
    async with websocket(server.url, run) as connection:
        await connection.recv()
        for _ in range(100):
            await connection.send("hello")
        await asyncio.wait_for(await connection.ping(), DEADLINE)
        await airflow.set_task(run, "ask", "scheduled")
        assert json.loads(await connection.recv())["type"] == "task"
    await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_a_stream_needs_no_task(server: RunningServer, run: RunKey) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(unread(server.url, run, upgrade=False))
        tasks = len(asyncio.all_tasks())
        for number in range(20):
            await stack.enter_async_context(unread(server.url, run, upgrade=bool(number % 2)))
        assert server.hub.statistics().subscriptions == 21
        assert len(asyncio.all_tasks()) == tasks
    await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_the_connection_of_an_ended_stream_serves_the_next_request(
    server: RunningServer, run: RunKey, airflow: AirflowSql
) -> None:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    request = f"GET {stream_path(run)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    writer.write(request)
    await asyncio.wait_for(reader.readuntil(b'"snapshot"'), DEADLINE)
    # The second request arrives during the first response.
    writer.write(request)
    await airflow.set_run(run, "failed")
    first = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), DEADLINE)
    second = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), DEADLINE)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    third = await asyncio.wait_for(reader.readuntil(b'{"status":"ok"}'), DEADLINE)
    writer.close()
    assert first.count(b"event: end\n") == second.count(b"event: end\n") == 1
    assert second.startswith(b"HTTP/1.1 200 ")
    assert third.startswith(b"HTTP/1.1 200 ")


async def test_streams_end_cleanly_under_any_asgi_server(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings(), direct_writes=False) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events, websocket(server.url, run) as connection:
            await events.next()
            push(server, large(200_000))
            assert (await events.next())["type"] == "reset"
            draining = asyncio.create_task(server.hub.drain(5))
            assert types(await events.rest()) == ["close"]
            assert types(await frames_of(connection)) == ["snapshot", "reset", "close"]
            await draining


async def test_a_client_that_does_not_read_is_closed_when_the_server_stops(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as clients, running_server(settings(grace_period=0.5)) as server:
        await eventually_async(lambda: server.hub.is_live)
        for upgrade in (False, True):
            await clients.enter_async_context(unread(server.url, run, upgrade=upgrade))
        wire = large(1_000_000)

        def behind() -> bool:
            push(server, wire)
            return server.hub.statistics().queued_frames > 2

        await eventually_async(behind)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_hundreds_of_clients_are_drained_cleanly(journal: str, run: RunKey, unused_tcp_port: int) -> None:
    async with server_process("--port", str(unused_tcp_port), STREAM_SERVER_DATABASE_URL=journal) as process:
        assert process.stderr is not None
        log = b""
        while b"Following the journal" not in log or b"Listening on" not in log:
            log += await asyncio.wait_for(process.stderr.readline(), DEADLINE)
        opened = asyncio.Semaphore(0)

        async def watch() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
            writer.write(f"GET {stream_path(run)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            read = await reader.readuntil(b'"snapshot"')
            opened.release()
            read += await reader.read()
            writer.close()
            return read

        clients = [asyncio.create_task(watch()) for _ in range(CLIENTS)]
        for _ in clients:
            await asyncio.wait_for(opened.acquire(), 3 * DEADLINE)
        process.send_signal(signal.SIGTERM)
        bodies = await asyncio.wait_for(asyncio.gather(*clients), DEADLINE)
        log += await asyncio.wait_for(process.stderr.read(), DEADLINE)
        assert await asyncio.wait_for(process.wait(), DEADLINE) in {0, -signal.SIGTERM}
    assert all(body.count(b"event: close\n") == 1 and body.endswith(b"\r\n0\r\n\r\n") for body in bodies)
    assert b"ERROR" not in log
    assert b"Traceback" not in log
