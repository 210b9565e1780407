"""Raw TCP connections that send bytes that no client library would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from support.streams import DEADLINE


@dataclass
class RawResponse:
    """The response that arrived before the server closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        return found


class RawConnection:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        # A client that is refused while it sends can still read the response.
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def read_to_end(self) -> bytes:
        """Return all bytes up to the end, also where the server resets the connection."""
        received = b""
        with suppress(ConnectionResetError):
            while data := await asyncio.wait_for(self.reader.read(2**16), DEADLINE):
                received += data
        return received

    async def read_response(self) -> RawResponse:
        """Return the last response of a connection that ends."""
        head, _, body = (await self.read_to_end()).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return RawResponse(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


@asynccontextmanager
async def open_raw(url: str) -> AsyncIterator[RawConnection]:
    """Connect, and send nothing yet."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
"""Headers of a handshake (RFC 6455 section 1.3)."""
