"""The LISTEN connection of a tail, tested with a notification of its own, and the locks of the notify protocol."""

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
"""The channel on which the triggers notify, with an empty payload."""

CANARY_TIMEOUT = 5.0
"""Seconds in which our own notification must arrive."""

POOLER_PROBES = 3
"""How often the server process of a second connection is compared with ours."""


class ListenObstacle(Enum):
    """Why no notifications arrive: a description, and what to do about it."""

    REPLICA = "PostgreSQL is a read replica, where LISTEN does not work", "Use the URL of the primary"
    POOLER = (
        "A pooler assigns each transaction to another session, so LISTEN does not work",
        "Use a URL of PostgreSQL itself, or of a pool in session mode",
    )
    NOTIFY_DISABLED = (
        "The setting stream_server.doorbell disables the notifications of the triggers",
        "Reset it (ALTER DATABASE ... RESET stream_server.doorbell) unless that is intended",
    )
    NOT_RECEIVED = "A test notification did not arrive", "Use a URL of the primary itself"

    def describe(self, poll_seconds: float) -> str:
        """Return a log line."""
        found, remedy = self.value
        return f"{found}: polling every {poll_seconds:g} s instead. {remedy}"


class Listener:
    """A connection that listens on `NOTIFY_CHANNEL`, and holds the locks of the notify protocol.

    A notification is a hint without data. It is lost if the connection breaks, and a pooler may drop all of them. So a
    tail also polls. Transactions notify only while a tail is idle (`go_idle`, and `stream_server.ring()` in
    `functions.sql`).
    """

    def __init__(self, connection: DatabaseConnection, wake: Callable[[], None]) -> None:
        self._connection = connection
        self._queries = load_queries("notify.sql")
        self._wake = wake
        self._canary = asyncio.Event()
        self._token = uuid4().hex
        self.obstacle: ListenObstacle | None = None
        """Why no notifications arrive; `None` if they do."""

        self.is_lost = False
        """Whether the connection has been closed or broken."""

    @property
    def receives_notifications(self) -> bool:
        """Whether notifications arrive: our own one did, and the triggers send them."""
        return self.obstacle is None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, wake: Callable[[], None], *, second_connection: DatabaseConnection
    ) -> AsyncIterator[Listener]:
        """Open the connection and listen. Close it on exit.

        Args:
            url: Database URL.
            wake: Called in the event loop for each notification, and when the connection is lost.
            second_connection: Another connection to the same database, which sends the test notification.

        Raises:
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        listener = cls(connection, wake)
        try:
            with map_postgres_errors():
                connection.add_termination_listener(listener._on_termination)
                listener.obstacle = await listener._start_listening(second_connection)
            yield listener
        finally:
            connection.remove_termination_listener(listener._on_termination)
            await close_connection(connection)

    async def go_idle(self) -> bool:
        """Have transactions notify from now on. Return false if the lock is not free at this moment.

        Only for a connection that receives notifications: it has a server session of its own, which holds the lock.
        """
        return await self._fetch_boolean("go_idle")

    async def wake_up(self) -> None:
        """Release the lock of `go_idle`: transactions need not notify this tail."""
        await self._fetch_boolean("wake_up")

    async def unnotified_writers_ended(self) -> bool:
        """Whether all transactions that did not notify have ended. If so, their rows are visible."""
        return await self._fetch_boolean("have_unnotified_writers_ended")

    async def _start_listening(self, second_connection: DatabaseConnection) -> ListenObstacle | None:
        """Execute LISTEN and test it. Return why no notifications arrive, or `None`.

        The test notification comes from another connection: through a pooler in transaction mode, a connection receives
        only its own notifications.
        """
        if self._connection.server_info.is_replica:
            return ListenObstacle.REPLICA
        if self._connection.server_info.is_pooled and not await self._owns_server_session(second_connection):
            # LISTEN would remain in a session that serves other clients.
            return ListenObstacle.POOLER
        await self._connection.add_listener(NOTIFY_CHANNEL, self._on_notification)
        row = await second_connection.fetchrow(self._queries["probe"], NOTIFY_CHANNEL, self._token)
        assert row is not None, "a SELECT without FROM returns one row"
        with anyio.move_on_after(CANARY_TIMEOUT):
            await self._canary.wait()
            return None if row["are_triggers_notifying"] else ListenObstacle.NOTIFY_DISABLED
        await self._connection.remove_listener(NOTIFY_CHANNEL, self._on_notification)
        return ListenObstacle.POOLER if self._connection.server_info.is_pooled else ListenObstacle.NOT_RECEIVED

    async def _owns_server_session(self, second_connection: DatabaseConnection) -> bool:
        """Whether a pooler has assigned a server session to this connection alone."""
        process = await self._connection.fetchval("SELECT pg_backend_pid()")
        for _ in range(POOLER_PROBES):
            if await second_connection.fetchval("SELECT pg_backend_pid()") == process:
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
