"""WebSockets of many streams that end badly: whatever was under way, nothing of them is left."""

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

MOST = 20
"""Streams of a connection."""

BEGINNING, ENDING = "beginning of a stream", "end of a stream"
"""Names of tasks."""


def tasks(name: str) -> int:
    return sum(task.get_name() == name for task in asyncio.all_tasks())


@asynccontextmanager
async def deaf(server: RunningServer, run: RunKey) -> AsyncIterator[ClientConnection]:
    """A client that has read the snapshot of its one stream, and reads nothing more: nothing can be sent to it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        sock.setblocking(False)
        connection = await connect(
            "ws://127.0.0.1/api/v2/stream", sock=sock, max_queue=1, compression=None, ping_interval=None, proxy=None
        )
        try:
            await say(connection, op="subscribe", id="a", dag_id=run.dag_id, run_id=run.run_id)
            while json.loads(await connection.recv())["type"] != "snapshot":
                pass
            connection.transport.pause_reading()
            (subscription,) = server.hub._subscriptions
            wire = Wire(Reset(dag_id="x" * 100_000, run_id="", reason="cleared"))

            def behind() -> bool:
                subscription.push([wire])
                return subscription.statistics().queued_frames > 2

            await eventually_async(behind)
            yield connection
        finally:
            connection.transport.abort()


async def say(connection: ClientConnection, **operation: object) -> None:
    await connection.send(json.dumps(operation))


@pytest.fixture(params=[True, False], ids=["straight", "stepped"])
async def serving(settings: Callable[..., Settings], request: pytest.FixtureRequest) -> AsyncIterator[RunningServer]:
    async with running_server(settings(max_subscriptions=MOST), straight=request.param) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "deaf"])
async def test_who_vanishes_without_a_word_leaves_no_stream(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture, *, reads: bool
) -> None:
    async with running_server(settings(ping_interval=0.5)) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        if reads:
            connection = await stack.enter_async_context(
                connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None, ping_interval=None)
            )
        else:
            connection = await stack.enter_async_context(deaf(server, run))
        for number in range(4):
            await say(connection, op="subscribe", id=str(number), dag_id=run.dag_id, run_id=run.run_id)
        await eventually_async(lambda: server.hub.statistics().subscriptions >= 4)
        # Under way while it vanishes, too.
        await say(connection, op="subscribe", id="late", dag_id=[run.dag_id])
        disconnect(connection.transport, "vanish")
        await eventually_async(lambda: server.hub.statistics()[:2] == (0, 0), within=20)
        await eventually_async(lambda: tasks("multiplex reader") == tasks(BEGINNING) == tasks(ENDING) == 0)
        connection.transport.abort()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_fault_with_one_stream_is_told_and_disturbs_no_other(
    serving: RunningServer, run: RunKey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is known that would provoke one."""
    address = serving.url.replace("http", "ws", 1) + "/api/v2/stream"
    async with connect(address, proxy=None) as connection:
        await say(connection, op="subscribe", id="good", dag_id=run.dag_id, run_id=run.run_id)
        while json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))["type"] != "snapshot":
            pass
        monkeypatch.setattr(serving.hub, "subscribe_firehose", None)
        await say(connection, op="subscribe", id="bad", dag_id=[run.dag_id])
        told = json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))
        assert (told["type"], told["id"], told["status"]) == ("error", "bad", 500)
        assert "NoneType" not in told["detail"]
        await say(connection, op="unsubscribe", id="bad")
        assert json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))["detail"].startswith(
            "There is no stream"
        )
        assert serving.hub.statistics().subscriptions == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "A stream could not be begun"
    ]


async def test_refusals_that_nobody_reads_are_bounded_and_end_with_the_connection(
    serving: RunningServer, run: RunKey
) -> None:
    async with deaf(serving, run) as connection:
        for number in range(MAX_REPLIES):
            await say(connection, op="ping", id=str(number))
        for number in range(MOST + 10):
            await say(connection, op="subscribe", id=f"s{number}", dag_id=run.dag_id, run_id="nobody")
        # Beyond what a connection may have, it is not even read what it says.
        await eventually_async(lambda: tasks(BEGINNING) == MOST - 1)
        disconnect(connection.transport, "reset")
    await eventually_async(lambda: tasks(BEGINNING) == 0)
    await eventually_async(lambda: serving.hub.statistics().subscriptions == 0)
