"""A TCP proxy that a test can switch to another server, as a failover does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from stream_server.cli.demo.ports import LOOPBACK

CHUNK = 2**16
TERMINATE = b"X\x00\x00\x00\x04"
"""The last message of a PostgreSQL client."""


class TcpProxy:
    """Forwards to the current target. With target `None` it accepts connections and never answers."""

    def __init__(self, target: int | None) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.port = 0
        self.swallows_close = False
        """Whether a PostgreSQL client that closes its connection gets no more response."""

        self.accepted = 0
        """How many connections have been made, to whatever server."""

    @classmethod
    @asynccontextmanager
    async def listen(cls, target: int | None) -> AsyncIterator[TcpProxy]:
        """Listen on a free loopback port.

        Args:
            target: Loopback port of the server.
        """
        proxy = cls(target)
        server = await asyncio.start_server(proxy._accept, LOOPBACK, 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            proxy._closed = True
            server.close()
            await proxy.cut_connections()
            await server.wait_closed()

    async def switch_to(self, target: int | None, *, cut: bool = True) -> None:
        """Forward new connections to another server, and cut the existing ones."""
        self._target = target
        if cut:
            await self.cut_connections()

    async def cut_connections(self) -> None:
        """Cut all connections without a close frame."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            # It was accepted while the proxy was closed.
            writer.transport.abort()
            return
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also where it is cancelled before it has started.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._target is None:
                await reader.read()
            else:
                await self._forward(reader, writer, self._target)
        except OSError:
            pass

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        their_reader, their_writer = await asyncio.open_connection(LOOPBACK, target)
        ways = {
            asyncio.create_task(_copy(reader, their_writer, until=TERMINATE if self.swallows_close else None)),
            asyncio.create_task(_copy(their_reader, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First, because it can be cancelled again while it waits.
            their_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, until: bytes | None = None) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK):
            if chunk == until:
                await asyncio.get_running_loop().create_future()
            writer.write(chunk)
            await writer.drain()
