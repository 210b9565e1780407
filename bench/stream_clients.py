"""The clients: a stream as SSE and as WebSocket, with as little as possible between socket and clock.

Both are raw asyncio protocols. Data is time-stamped first. SSE is parsed only at the end; WebSocket, whose
pings must be answered, by the sans-I/O parser of `websockets`, after all ready sockets have been read.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from bench.recorder import RecorderLink


class Delivery(NamedTuple):
    """A `task` frame as it was read."""

    at: float
    seq: int
    number: int


class Received(NamedTuple):
    """The frames that one client has read, in order."""

    deliveries: list[Delivery]
    others: list[str]
    """Types of all frames that are not `task`."""


class Client(asyncio.Protocol):
    """A connection that stamps what it reads."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.request())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("The server closed the connection at once"))

    def request(self) -> bytes:
        """Return the request that opens the stream."""
        raise NotImplementedError

    def received(self) -> Received:
        """Return all frames read so far."""
        raise NotImplementedError


class SseClient(Client):
    """Server-sent events over HTTP/1.1."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = urlsplit(url)
        self._read: list[tuple[float, bytes]] = []

    def request(self) -> bytes:
        path = f"{self._url.path}?{self._url.query}"
        return f"GET {path} HTTP/1.1\r\nHost: {self._url.netloc}\r\nAccept: text/event-stream\r\n\r\n".encode()

    def data_received(self, data: bytes) -> None:
        self._read.append((time.monotonic(), data))
        if not self.opened.done() and b"event: snapshot" in data:
            self.opened.set_result(None)

    def received(self) -> Received:
        frames: list[tuple[float, dict[str, Any]]] = []
        body = bytearray()
        parser = httptools.HttpResponseParser(_Body(body))
        for at, data in self._read:
            parser.feed_data(data)
            *events, rest = bytes(body).split(b"\n\n")
            body[:] = rest
            for event in events:
                fields = dict(line.split(b": ", 1) for line in event.split(b"\n"))
                if b"data" in fields:
                    frames.append((at, json.loads(fields[b"data"])))
        return _sorted(frames)


class _Body:
    """Collects the body of a response from httptools."""

    def __init__(self, body: bytearray) -> None:
        self.on_body = body.extend


class WebSocketClient(Client):
    """One text message for each frame."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._protocol = ClientProtocol(parse_uri(url.replace("http", "ws", 1)), max_size=None)
        self._frames: list[tuple[float, bytes]] = []

    def request(self) -> bytes:
        self._protocol.send_request(self._protocol.connect())
        return b"".join(self._protocol.data_to_send())

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._parse, time.monotonic(), data)

    def _parse(self, at: float, data: bytes) -> None:
        assert self.transport is not None, "it has made a connection"
        self._protocol.receive_data(data)
        for answer in self._protocol.data_to_send():
            self.transport.write(answer)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            assert isinstance(event, Frame), "a client receives nothing else"
            if event.opcode is Opcode.TEXT:
                self._frames.append((at, bytes(event.data)))
                if not self.opened.done():
                    self.opened.set_result(None)

    def received(self) -> Received:
        return _sorted([(at, json.loads(text)) for at, text in self._frames])


def _sorted(frames: list[tuple[float, dict[str, Any]]]) -> Received:
    return Received(
        [Delivery(at, frame["seq"], frame["try_number"]) for at, frame in frames if frame["type"] == "task"],
        [frame["type"] for _, frame in frames if frame["type"] != "task"],
    )


def use_client(client: Client) -> Client:
    """Return the client: a protocol factory."""
    return client


async def record_streams(link: RecorderLink, url: str) -> None:
    """Watch a stream over both transports; send what each received: SSE first, then WebSocket."""
    loop = asyncio.get_running_loop()
    clients: list[Client] = [SseClient(url), WebSocketClient(url)]
    parts = urlsplit(url)
    assert parts.hostname is not None, "the testbed gives the whole address"
    try:
        for client in clients:
            await loop.create_connection(partial(use_client, client), parts.hostname, parts.port or 80)
            await asyncio.wait_for(client.opened, 10)
        await link.wait_for_end(lambda: min(len(client.received().deliveries) for client in clients))
        link.send([client.received() for client in clients])
    finally:
        for client in clients:
            if client.transport is not None:
                client.transport.abort()
