"""Hearing the doorbell: one LISTEN connection, that proves itself at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from uuid import uuid4

import anyio

from stream_server.journal.connection import DatabaseConnection, close_connection, connect, map_postgres_errors
from stream_server.journal.queries import load_queries

NOTIFY_CHANNEL = "stream_server"
"""The channel on which the triggers ring, with an empty payload."""

CANARY_TIMEOUT = 5.0
"""Seconds in which our own notification must come back."""


POOLER_PROBES = 3
"""How often another connection looks whether it meets our session."""


class ListenObstacle(Enum):
    """Why no ring comes: what is there, and what to do about it."""

    REPLICA = "PostgreSQL is a read replica, where LISTEN does not work", "Give the URL of the primary"
    POOLER = (
        "A pooler gives each transaction another session, so that LISTEN does not work",
        "Give a URL that leads to PostgreSQL itself, or through a pool in session mode",
    )
    NOTIFY_DISABLED = (
        "The setting stream_server.doorbell tells the triggers not to ring",
        "Reset it (ALTER DATABASE ... RESET stream_server.doorbell), if that was not meant",
    )
    NOT_RECEIVED = "A notification of our own did not come back", "Give a URL that leads to the primary itself"

    def describe(self, seconds: float) -> str:
        """Say it in one line, given how often is looked instead."""
        found, remedy = self.value
        return f"{found}: polling every {seconds:g} s instead. {remedy}"


class Listener:
    """A connection that hears every ring.

    Rings are a hint: one may be lost with the connection, and a pooler swallows all of them. Whoever waits for one also
    looks by himself now and then. Transactions ring only while somebody lies down (`stream_server.ring()`).
    """

    def __init__(self, connection: DatabaseConnection, ring: Callable[[], None]) -> None:
        self._connection = connection
        self._queries = load_queries("doorbell.sql")
        self._wake = ring
        self._canary = asyncio.Event()
        self._token = uuid4().hex
        self.obstacle: ListenObstacle | None = None
        """What keeps rings from coming, if anything does."""

        self.is_lost = False
        """Whether the connection is gone."""

    @property
    def receives_notifications(self) -> bool:
        """Whether rings come: our own notification came back, and the triggers are not told to be silent."""
        return self.obstacle is None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, ring: Callable[[], None], *, beside: DatabaseConnection) -> AsyncIterator[Listener]:
        """Listen, calling `ring` in the event loop at each notification and when the connection is lost.

        Args:
            url: Database URL.
            ring: What to call.
            beside: Another connection to the same database.

        Raises:
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        listener = cls(connection, ring)
        try:
            with map_postgres_errors():
                connection.add_termination_listener(listener._on_termination)
                listener.obstacle = await listener._start_listening(beside)
            yield listener
        finally:
            connection.remove_termination_listener(listener._on_termination)
            await close_connection(connection)

    async def go_idle(self) -> bool:
        """Have transactions ring from now on; false where it could not be said just now.

        Only a connection that hears may do so: its session is its own.
        """
        return await self._fetch_boolean("lie_down")

    async def wake_up(self) -> None:
        """Let transactions be silent as far as we are concerned."""
        await self._fetch_boolean("get_up")

    async def unnotified_writers_ended(self) -> bool:
        """Tell whether all silent transactions have ended. What they wrote can be read then."""
        return await self._fetch_boolean("quiet")

    async def _start_listening(self, beside: DatabaseConnection) -> ListenObstacle | None:
        """Listen, and ring our own bell from the other connection.

        A pooler in transaction mode would deliver what we ring for ourselves, and nothing else.
        """
        if self._connection.server_info.is_replica:
            return ListenObstacle.REPLICA
        if self._connection.server_info.is_pooled and not await self._owns_server_session(beside):
            # LISTEN would stay behind in somebody else's session.
            return ListenObstacle.POOLER
        await self._connection.add_listener(NOTIFY_CHANNEL, self._on_notification)
        row = await beside.fetchrow(self._queries["hears"], NOTIFY_CHANNEL, self._token)
        assert row is not None, "a SELECT without FROM has one row"
        with anyio.move_on_after(CANARY_TIMEOUT):
            await self._canary.wait()
            return None if row["rings"] else ListenObstacle.NOTIFY_DISABLED
        await self._connection.remove_listener(NOTIFY_CHANNEL, self._on_notification)
        return ListenObstacle.POOLER if self._connection.server_info.is_pooled else ListenObstacle.NOT_RECEIVED

    async def _owns_server_session(self, beside: DatabaseConnection) -> bool:
        """Tell whether a pooler keeps our session for us: then nobody else meets it."""
        process = await self._connection.fetchval("SELECT pg_backend_pid()")
        for _ in range(POOLER_PROBES):
            if await beside.fetchval("SELECT pg_backend_pid()") == process:
                return False
        return bool(await self._connection.fetchval("SELECT pg_backend_pid()") == process)

    async def _fetch_boolean(self, name: str) -> bool:
        with map_postgres_errors():
            return bool(await self._connection.fetchval(self._queries[name]))

    def _on_notification(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == self._token:
            self._canary.set()
        self._wake()

    def _on_termination(self, _connection: object) -> None:
        self.is_lost = True
        self._wake()
