"""WebSockets of many streams that end badly: whatever was under way, nothing of them is left."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import ClientConnection, connect

from stream_server.frames import Reset, Wire
from stream_server.run_state import RunKey
from stream_server.settings import Settings
from stream_server.transports.bundle import MAX_REPLIES
from support.server import RunningServer, running_server
from support.waiting import eventually_async

MOST = 20
"""Streams of a connection."""

BEGINNING = "beginning of a stream"


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
        await eventually_async(lambda: server.hub.live)
        yield server


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
        connection.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    await eventually_async(lambda: tasks(BEGINNING) == 0)
    await eventually_async(lambda: serving.hub.statistics().subscriptions == 0)
