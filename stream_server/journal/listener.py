"""Hearing the doorbell: one LISTEN connection, that proves itself at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio

from stream_server.journal.connection import Connection, connect, disconnect, errors_mapped
from stream_server.journal.queries import load_queries

CHANNEL = "stream_server"
"""The channel on which the triggers ring, with an empty payload."""

CANARY_TIMEOUT = 5.0
"""Seconds in which our own notification must come back."""


class Listener:
    """A connection that hears every ring.

    Rings are a hint: one may be lost with the connection, and a pooler swallows all of them. Whoever waits for one also
    looks by himself now and then. Transactions ring only while somebody lies down (`stream_server.ring()`).
    """

    def __init__(self, connection: Connection, ring: Callable[[], None]) -> None:
        self._connection = connection
        self._queries = load_queries("doorbell.sql")
        self._ring = ring
        self._canary = asyncio.Event()
        self._token = uuid4().hex
        self.hears = False
        """Whether rings come: our own notification came back, and the triggers are not told to be silent."""

        self.lost = False
        """Whether the connection is gone."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, ring: Callable[[], None]) -> AsyncIterator[Listener]:
        """Listen, calling `ring` in the event loop at each notification and when the connection is lost.

        Raises:
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        listener = cls(connection, ring)
        try:
            with errors_mapped():
                connection.add_termination_listener(listener._lose)
                await connection.add_listener(CHANNEL, listener._hear)
                await listener._prove()
            yield listener
        finally:
            connection.remove_termination_listener(listener._lose)
            await disconnect(connection)

    async def lie_down(self) -> bool:
        """Have transactions ring from now on; false where it could not be said just now.

        Only a connection that hears may do so: its session is its own.
        """
        return await self._ask("lie_down")

    async def get_up(self) -> None:
        """Let transactions be silent as far as we are concerned."""
        await self._ask("get_up")

    async def quiet(self) -> bool:
        """Tell whether all silent transactions have ended. What they wrote can be read then."""
        return await self._ask("quiet")

    async def _prove(self) -> None:
        row = await self._connection.fetchrow(self._queries["hears"], CHANNEL, self._token)
        assert row is not None, "a SELECT without FROM has one row"
        with anyio.move_on_after(CANARY_TIMEOUT):
            await self._canary.wait()
            self.hears = row["rings"]

    async def _ask(self, name: str) -> bool:
        with errors_mapped():
            return bool(await self._connection.fetchval(self._queries[name]))

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == self._token:
            self._canary.set()
        self._ring()

    def _lose(self, _connection: object) -> None:
        self.lost = True
        self._ring()
