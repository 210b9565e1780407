"""A hostile client: raw connections from an address of its own, and counters of what it sent and got."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from stream_server.cli.demo.ports import LOOPBACK
from support.raw_connection import UPGRADE

HELD = 40
"""Connections that a client holds that takes many."""

READ_BYTES = 2**16
MASK = b"\0\0\0\0"


def websocket_frame(payload: bytes, first: int = 0x81) -> bytes:
    """Return a frame masked with zeros (RFC 6455 section 5.2)."""
    if len(payload) < 126:  # RFC 6455
        return bytes([first, 0x80 | len(payload)]) + MASK + payload
    return bytes([first, 0x80 | 127]) + len(payload).to_bytes(8, "big") + MASK + payload


class Attacker:
    """One hostile client.

    Args:
        port: Port of the server.
        number: Number of the client, which makes its address.
        run: Path of a run's stream.
        totals: Counters of its kind.
    """

    def __init__(self, port: int, number: int, run: str, totals: Counter[str]) -> None:
        self.port, self.run, self.totals = port, run, totals
        self.base = run.removesuffix("/stream")
        self.address = f"203.0.113.{number % 250 + 1}"

    def request(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"X-Forwarded-For: {self.address}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(LOOPBACK, self.port, limit=READ_BYTES)
        self.totals["connections"] += 1
        try:
            yield Connection(reader, writer, self.totals)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def hold(self, data: bytes, connections: int = HELD) -> AsyncIterator[list[Connection]]:
        """Open many connections, and send the same on each."""
        held = []
        try:
            for _ in range(connections):
                reader, writer = await asyncio.open_connection(LOOPBACK, self.port, limit=READ_BYTES)
                self.totals["connections"] += 1
                held.append(Connection(reader, writer, self.totals))
                await held[-1].send(data)
            yield held
        finally:
            for one in held:
                one.writer.transport.abort()

    async def exchange(self, data: bytes) -> None:
        """Send something on a new connection, and read what comes back for a moment."""
        async with self.connect() as connection:
            await connection.send(data)
            await connection.read()

    @asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator[Connection]:
        async with self.connect() as connection:
            await connection.send(self.request(path, *UPGRADE))
            await connection.read()
            yield connection


class Connection:
    """A raw connection that counts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, totals: Counter[str]) -> None:
        self.reader, self.writer, self._totals = reader, writer, totals

    async def send(self, data: bytes) -> None:
        self._totals["sent"] += len(data)
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, seconds: float = 0.5) -> bytes:
        """Return the first bytes that come, and count their status."""
        with suppress(asyncio.TimeoutError):
            data = await asyncio.wait_for(self.reader.read(READ_BYTES), seconds)
            self._totals[data[9:12].decode("latin-1") if data.startswith(b"HTTP/1.1 ") else "other"] += 1
            return data
        return b""
