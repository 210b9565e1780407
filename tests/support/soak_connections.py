"""Minimal client connections, so that thousands fit into one process."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from stream_server.cli.demo.ports import LOOPBACK

Frame = dict[str, Any]
Disconnect = Literal["close", "reset", "vanish"]

OPEN_SECONDS = 30.0
SMALL_BUFFER = 4096
SO_ATTACH_FILTER = 26
"""Linux: see socket(7)."""

CONNECTION_ERRORS = (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake)
"""Exceptions of a connection that was refused or cut."""


class StreamRefused(OSError):
    """The server responded, but not with a stream."""


class StreamOver(Exception):
    """The client reconnected after the end of its stream."""


def disconnect(transport: asyncio.BaseTransport, how: Disconnect) -> None:
    """Disconnect with FIN, with RST, or by vanishing: then the socket stays open and receives nothing."""
    if transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    if how == "vanish":
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop_all)))
        return
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.Transport)
    transport.abort()


class HttpStream:
    """A stream over HTTP: server-sent events or NDJSON."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls, port: int, path: str, *, media_type: str = "text/event-stream", cursor: str | None, slow: bool = False
    ) -> HttpStream:
        """Open a stream.

        Raises:
            Refused: The server responded with an error.
            Over: The stream had already ended.
        """
        sock = socket.socket()
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        try:
            with anyio.fail_after(OPEN_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (LOOPBACK, port))
        except BaseException:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock)
        position = "" if cursor is None else f"Last-Event-ID: {cursor}\r\n"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nAccept: {media_type}\r\n{position}\r\n".encode()
        )
        lines = cls(reader, writer)
        try:
            with anyio.fail_after(OPEN_SECONDS):
                await lines._begin()
        except BaseException:
            writer.transport.abort()
            raise
        return lines

    async def _begin(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 204:
            raise StreamOver
        if status != 200:
            raise StreamRefused(status)

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield frames, each with its cursor, up to a clean end of the body.

        Raises:
            EOFError: The connection was cut.
        """
        cursor: str | None = None
        while True:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                # The cut may be in the middle of a line.
                raise EOFError
            if line.startswith(b"id: "):
                cursor = line[4:].strip().decode()
            elif line.startswith((b"data: ", b"{")):
                frame: Frame = json.loads(line.removeprefix(b"data: "))
                yield {"cursor": cursor, **frame}
                cursor = None
            elif line == b"0\r\n":
                return

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The transport of the connection."""
        return self._writer.transport

    def disconnect(self, how: Disconnect) -> None:
        """Disconnect."""
        disconnect(self.transport, how)


class WebSocketStream:
    """A stream over WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, port: int, path: str, *, cursor: str | None = None) -> WebSocketStream:
        """Open a stream."""
        position = "" if cursor is None else f"{'&' if '?' in path else '?'}cursor={cursor}"
        connection = await connect(
            f"ws://{LOOPBACK}:{port}{path}{position}",
            proxy=None,
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_SECONDS,
        )
        return cls(connection)

    async def send(self, **operation: object) -> None:
        """Send an operation on a connection of many streams."""
        await self._connection.send(json.dumps(operation))

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield frames up to the close."""
        while True:
            try:
                frame: Frame = json.loads(await self._connection.recv())
            except ConnectionClosed as error:
                if error.rcvd is None:
                    raise
                return
            yield frame

    @property
    def transport(self) -> asyncio.BaseTransport:
        """The transport of the connection."""
        return self._connection.transport

    def disconnect(self, how: Disconnect) -> None:
        """Disconnect."""
        disconnect(self.transport, how)
