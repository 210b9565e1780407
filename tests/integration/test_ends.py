"""What is left of connections that have ended: nothing, and no collector of cycles must come for that."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable, Iterator

import pytest
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.server.connections import HttpConnection, WebSocketConnection
from support.raw_connection import open_raw, request
from support.server import RunningServer
from support.streams import sse, stream_path
from support.waiting import eventually_async


def connections() -> list[object]:
    return [one for one in gc.get_objects() if type(one) in (HttpConnection, WebSocketConnection)]


async def _stream(server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        assert (await events.next())["type"] == "snapshot"


async def _request(server: RunningServer, run: RunKey) -> None:
    async with open_raw(server.url) as client:
        await client.send(request(stream_path(run).removesuffix("/stream") + "/result?timeout=0", "Connection: close"))
        assert (await client.read_response()).status == 202


async def _websocket(server: RunningServer, run: RunKey) -> None:
    async with connect(server.url.replace("http", "ws", 1) + stream_path(run), proxy=None) as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"


async def _cut_websocket(server: RunningServer, run: RunKey) -> None:
    async with connect(server.url.replace("http", "ws", 1) + stream_path(run), proxy=None) as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"
        connection.transport.abort()


async def _many_streams(server: RunningServer, run: RunKey) -> None:
    async with connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection:
        await connection.send(json.dumps({"op": "subscribe", "id": "a", "dag_id": run.dag_id, "run_id": run.run_id}))
        assert json.loads(await connection.recv())["type"] == "ack"
        assert json.loads(await connection.recv())["type"] == "snapshot"


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing but its own references frees what is made meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("visit", [_stream, _request, _websocket, _cut_websocket, _many_streams])
@pytest.mark.usefixtures("uncollected")
async def test_a_connection_that_ends_leaves_no_cycle(
    visit: Callable[[RunningServer, RunKey], Awaitable[None]], server: RunningServer, run: RunKey
) -> None:
    await visit(server, run)
    await eventually_async(lambda: not connections(), what="its connection is gone")
