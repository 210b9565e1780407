"""Closed connections are freed by reference counting, without the garbage collector."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable, Iterator

import pytest
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.server.client_connections import HttpConnection
from stream_server.server.websocket_connection import WebSocketConnection
from support.raw_connection import open_raw, request
from support.server import RunningServer
from support.streams import sse, stream_path
from support.waiting import eventually_async


def find_connections() -> list[object]:
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
def without_gc() -> Iterator[None]:
    """Disable the garbage collector during the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("visit", [_stream, _request, _websocket, _cut_websocket, _many_streams])
@pytest.mark.usefixtures("without_gc")
async def test_a_closed_connection_leaves_no_reference_cycle(
    visit: Callable[[RunningServer, RunKey], Awaitable[None]], server: RunningServer, run: RunKey
) -> None:
    await visit(server, run)
    await eventually_async(lambda: not find_connections(), what="the connection is freed")
