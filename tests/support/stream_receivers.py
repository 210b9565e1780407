"""Frames of a stream over each transport, with their cursors."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK, InvalidStatus

from support.streams import Events, Frame

Transport = Literal["sse", "ndjson", "websocket", "multiplex"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


class Target(NamedTuple):
    """A server, and how to ask it."""

    name: str
    url: str
    headers: dict[str, str]
    client: httpx.AsyncClient


class Way(NamedTuple):
    """A server and a transport."""

    target: Target
    transport: Transport

    def __repr__(self) -> str:
        return f"{self.target.name}, {self.transport}"


class StreamRequest(NamedTuple):
    """A stream, in the form of each transport."""

    path: str
    query: Sequence[tuple[str, str]]
    message: Mapping[str, object]
    """Members of the message `subscribe` of a multiplexed WebSocket, without `op`, `id` and `cursor`."""


class Received(NamedTuple):
    """A frame, without its cursor."""

    frame: Frame
    cursor: str | None


ReceivedFrames: TypeAlias = AsyncGenerator[Received, None]


class StreamRefused(Exception):
    """The server refused the stream."""

    def __init__(self, way: Way, status: int, problem: str) -> None:
        super().__init__(f"{way!r}: {status} {problem}")
        self.status = status
        self.problem = problem


async def receive(way: Way, request: StreamRequest, cursor: str | None = None) -> ReceivedFrames:
    """Yield the frames of a stream up to its end, without pings that have no cursor.

    Raises:
        StreamRefused: The server refused the stream.
    """
    readers = {"sse": _receive_http, "ndjson": _receive_http, "websocket": _receive_websocket}
    reader = readers.get(way.transport, _receive_multiplexed)
    async with aclosing(reader(way, request, cursor)) as received:
        async for one in received:
            assert one.frame["type"] != "close", f"{way!r}: {one.frame}"
            if one.frame["type"] != "ping" or one.cursor is not None:
                yield one


async def _receive_http(way: Way, request: StreamRequest, cursor: str | None) -> ReceivedFrames:
    accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}[way.transport]
    headers = {**way.target.headers, "Accept": accept} | ({"Last-Event-ID": cursor} if cursor is not None else {})
    path, query = way.target.url + request.path, httpx.QueryParams([*request.query])
    async with way.target.client.stream("GET", path, params=query, headers=headers) as response:
        if response.status_code == 204:
            # The client knows the end.
            return
        if response.status_code != 200:
            raise StreamRefused(way, response.status_code, json.loads(await response.aread())["type"])
        if way.transport == "sse":
            events = Events(response)
            async for frame in events:
                yield Received(frame, events.ids[-1])
            return
        async for line in response.aiter_lines():
            if line:
                yield _without_cursor(json.loads(line))


async def _receive_websocket(way: Way, request: StreamRequest, cursor: str | None) -> ReceivedFrames:
    query = str(httpx.QueryParams([*request.query, *([("cursor", cursor)] if cursor is not None else [])]))
    address = way.target.url.replace("http", "ws", 1) + request.path + f"?{query}"
    try:
        async with connect(address, additional_headers=way.target.headers, proxy=None, compression=None) as connection:
            while True:
                yield _without_cursor(json.loads(await connection.recv()))
    except ConnectionClosedOK:
        return
    except InvalidStatus as error:
        body = error.response.body
        raise StreamRefused(way, error.response.status_code, json.loads(body)["type"] if body else "") from error


async def _receive_multiplexed(way: Way, request: StreamRequest, cursor: str | None) -> ReceivedFrames:
    address = way.target.url.replace("http", "ws", 1) + "/api/v2/stream"
    message: dict[str, Any] = {"op": "subscribe", "id": "a", **request.message}
    async with connect(address, additional_headers=way.target.headers, proxy=None, compression=None) as connection:
        await connection.send(json.dumps(message | ({"cursor": cursor} if cursor is not None else {})))
        while True:
            frame = json.loads(await connection.recv())
            if frame["type"] == "error":
                raise StreamRefused(way, frame["status"], frame["problem"])
            if frame["type"] == "ack":
                continue
            assert frame.pop("id", "a") == "a"
            yield _without_cursor(frame)
            if frame["type"] == "end":
                return


def _without_cursor(frame: Frame) -> Received:
    cursor = frame.pop("cursor", None)
    return Received(frame, cursor)
