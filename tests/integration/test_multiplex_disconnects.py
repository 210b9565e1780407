"""Aborted multiplexed WebSockets leave no stream, task or log record."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from websockets.asyncio.client import ClientConnection, connect

from stream_server.domain.run_state import RunKey
from stream_server.http.delivery.multiplex_queue import MAX_REPLIES
from stream_server.protocol.frames import Reset
from stream_server.protocol.wire import Wire
from stream_server.settings import Settings
from support.server import RunningServer, running_server
from support.soak_connections import disconnect
from support.streams import DEADLINE
from support.waiting import eventually_async

MAX_STREAMS = 20
"""Limit of streams on a connection."""

OPENING = "multiplex: open stream"
"""Name of the task that opens a stream."""


def count_tasks(name: str) -> int:
    return sum(task.get_name() == name for task in asyncio.all_tasks())


@asynccontextmanager
async def unread_connection(server: RunningServer, run: RunKey) -> AsyncIterator[ClientConnection]:
    """A client that has read the snapshot of its stream and reads nothing more, so that its buffers are full."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        sock.setblocking(False)
        connection = await connect(
            "ws://127.0.0.1/api/v2/stream", sock=sock, max_queue=1, compression=None, ping_interval=None, proxy=None
        )
        try:
            await send(connection, op="subscribe", id="a", dag_id=run.dag_id, run_id=run.run_id)
            while json.loads(await connection.recv())["type"] != "snapshot":
                pass
            connection.transport.pause_reading()
            (subscription,) = server.subscriptions()
            wire = Wire(Reset(dag_id="x" * 100_000, run_id="", reason="cleared"))

            def is_behind() -> bool:
                subscription.push([wire])
                return subscription.statistics().queued_frames > 2

            await eventually_async(is_behind)
            yield connection
        finally:
            connection.transport.abort()


async def send(connection: ClientConnection, **message: object) -> None:
    await connection.send(json.dumps(message))


@pytest.fixture(params=[True, False], ids=["direct", "asgi"])
async def limited_server(
    settings: Callable[..., Settings], request: pytest.FixtureRequest
) -> AsyncIterator[RunningServer]:
    async with running_server(settings(max_subscriptions=MAX_STREAMS), direct_writes=request.param) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
async def test_a_client_that_vanishes_leaves_no_stream(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture, *, reads: bool
) -> None:
    # After three intervals, the system ends connections that accept no data: on a busy machine, 1.5 s are over
    # before the client has subscribed.
    interval = 0.5 if reads else 2.0
    async with running_server(settings(ping_interval=interval)) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        if reads:
            connection = await stack.enter_async_context(
                connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None, ping_interval=None)
            )
        else:
            connection = await stack.enter_async_context(unread_connection(server, run))
        for number in range(4):
            await send(connection, op="subscribe", id=str(number), dag_id=run.dag_id, run_id=run.run_id)
        await eventually_async(lambda: server.hub.statistics().subscriptions >= 4)
        # This one is still opening when the client vanishes.
        await send(connection, op="subscribe", id="late", dag_id=[run.dag_id])
        disconnect(connection.transport, "vanish")
        await eventually_async(lambda: server.hub.statistics()[:2] == (0, 0), within=60)
        await eventually_async(lambda: count_tasks("multiplex reader") == count_tasks(OPENING) == 0)
        connection.transport.abort()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_unexpected_exception_ends_one_stream_only(
    limited_server: RunningServer, run: RunKey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No request is known that causes one, so the test makes the hub raise it."""
    address = limited_server.url.replace("http", "ws", 1) + "/api/v2/stream"
    async with connect(address, proxy=None) as connection:
        await send(connection, op="subscribe", id="good", dag_id=run.dag_id, run_id=run.run_id)
        while json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))["type"] != "snapshot":
            pass
        monkeypatch.setattr(limited_server.hub, "subscribe_firehose", None)
        await send(connection, op="subscribe", id="bad", dag_id=[run.dag_id])
        error = json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))
        assert (error["type"], error["id"], error["status"]) == ("error", "bad", 500)
        assert "NoneType" not in error["detail"]
        await send(connection, op="unsubscribe", id="bad")
        assert json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))["detail"].startswith(
            "There is no stream"
        )
        assert limited_server.hub.statistics().subscriptions == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "A stream of a multiplexed WebSocket could not be opened"
    ]


async def test_unread_refusals_are_bounded_and_end_with_the_connection(
    limited_server: RunningServer, run: RunKey
) -> None:
    async with unread_connection(limited_server, run) as connection:
        for number in range(MAX_REPLIES):
            await send(connection, op="ping", id=str(number))
        for number in range(MAX_STREAMS + 10):
            await send(connection, op="subscribe", id=f"s{number}", dag_id=run.dag_id, run_id="missing")
        # The server reads no further messages while its replies are not read.
        await eventually_async(lambda: count_tasks(OPENING) == MAX_STREAMS - 1)
        disconnect(connection.transport, "reset")
    await eventually_async(lambda: count_tasks(OPENING) == 0)
    await eventually_async(lambda: limited_server.hub.statistics().subscriptions == 0)
