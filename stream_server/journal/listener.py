"""Hearing the doorbell: one LISTEN connection, that proves itself at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio

from stream_server.journal.connection import connect, disconnect, errors_mapped

CHANNEL = "stream_server"
"""The channel on which the triggers ring, with an empty payload."""

CANARY_TIMEOUT = 5.0
"""Seconds in which our own notification must come back."""


class Listener:
    """A connection that hears every ring.

    Rings are a hint: one may be lost with the connection, and a pooler swallows all of them. Whoever waits for one also
    looks by himself now and then.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._canary = asyncio.Event()
        self._token = uuid4().hex
        self.hears = False
        """Whether our own notification came back: LISTEN works on this connection."""

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
        listener = cls(ring)
        try:
            with errors_mapped():
                connection.add_termination_listener(listener._lose)
                await connection.add_listener(CHANNEL, listener._hear)
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, listener._token)
                with anyio.move_on_after(CANARY_TIMEOUT):
                    await listener._canary.wait()
                    listener.hears = True
            yield listener
        finally:
            connection.remove_termination_listener(listener._lose)
            await disconnect(connection)

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == self._token:
            self._canary.set()
        self._ring()

    def _lose(self, _connection: object) -> None:
        self.lost = True
        self._ring()
