"""Clients that read streams from a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, get_args
from urllib.parse import quote, urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from stream_server.domain.run_state import RunKey
from stream_server.protocol.frames import AnyFrame

DEADLINE = 10.0
"""Seconds within which a frame that is due must arrive."""

Frame = dict[str, Any]

EVENT_NAMES = sorted({str(kind.__struct_config__.tag) for kind in get_args(AnyFrame)} - {"ack", "error"})
"""Event names of server-sent events. Other frames exist on WebSockets only; `EventSource` uses `error` itself."""


def stream_path(key: RunKey, query: str = "") -> str:
    return f"/api/v2/dags/{quote(key.dag_id)}/dagRuns/{quote(key.run_id, safe='')}/stream{query}"


class Events:
    """Server-sent events, parsed after WHATWG HTML 9.2.6, kept as (id, event, data).

    Args:
        response: The response whose body they are.
        within: Seconds within which a frame that is due must arrive.
    """

    def __init__(self, response: httpx.Response, within: float = DEADLINE) -> None:
        self.response = response
        self.within = within
        self.ids: list[str | None] = []
        self._events = self._parse()

    async def _parse(self) -> AsyncIterator[Frame]:
        fields: dict[str, str] = {}
        async for line in self.response.aiter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:
                frame = json.loads(fields["data"])
                assert fields["event"] == frame["type"], "the event's name is the frame's type"
                self.ids.append(fields.get("id"))
                yield frame
                fields = {}
            else:
                fields = {}

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._events

    async def next(self) -> Frame:
        return await asyncio.wait_for(anext(self._events), self.within)

    async def rest(self, within: float | None = None) -> list[Frame]:
        """Return all frames up to the end of the body."""
        return await asyncio.wait_for(self._all(), self.within if within is None else within)

    async def until(self, kind: str) -> list[Frame]:
        """Return frames up to and including the first one of a type."""
        frames = [await self.next()]
        while frames[-1]["type"] != kind:
            frames.append(await self.next())
        return frames

    async def _all(self) -> list[Frame]:
        return [frame async for frame in self._events]


@asynccontextmanager
async def sse(
    url: str, key: RunKey, query: str = "", headers: dict[str, str] | None = None, timeout: float = DEADLINE
) -> AsyncIterator[Events]:
    """Open a run's stream as server-sent events."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=timeout) as client,
        client.stream("GET", stream_path(key, query), headers=headers) as response,
    ):
        yield Events(response, timeout)


@asynccontextmanager
async def websocket(
    url: str, key: RunKey, query: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[ClientConnection]:
    """Open a run's stream as WebSocket."""
    address = url.replace("http", "ws", 1) + stream_path(key, query)
    async with connect(address, additional_headers=headers, proxy=None) as connection:
        yield connection


@asynccontextmanager
async def unread(
    url: str, key: RunKey, query: str = "", *, upgrade: bool, last: str = "snapshot"
) -> AsyncIterator[socket.socket]:
    """Open a stream, and stop reading within the first frame of a type."""
    handshake = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    request = f"GET {stream_path(key, query)} HTTP/1.1\r\nHost: localhost\r\n{handshake if upgrade else ''}\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        parts = urlsplit(url)
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        await loop.sock_sendall(sock, request.encode())
        read = b""
        while f'"type":"{last}"'.encode() not in read:
            read += await asyncio.wait_for(loop.sock_recv(sock, 4096), DEADLINE)
        yield sock


async def frames_of(connection: ClientConnection) -> list[Frame]:
    """Return all frames up to the close of a WebSocket, with any code."""
    frames: list[Frame] = []

    async def read() -> None:
        with suppress(ConnectionClosed):
            while True:
                frames.append(json.loads(await connection.recv()))

    await asyncio.wait_for(read(), DEADLINE)
    return frames


def types(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames]


def states(frames: list[Frame], task_id: str) -> list[str | None]:
    """Return the states of a task in its frames, in order."""
    return [frame["state"] for frame in frames if frame["type"] == "task" and frame["task_id"] == task_id]
