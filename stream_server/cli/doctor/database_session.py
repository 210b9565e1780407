"""Connections of the doctor: read-only, and with a timeout for each statement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from stream_server.journal.connection import build_connect_arguments, close_connection, map_postgres_errors

APPLICATION_NAME = "stream_server doctor"


class ReadOnlySession:
    """A connection to one database, opened on first use.

    It works through any pooler: each query has its own transaction, and no prepared statement outlives it.

    Args:
        url: Database URL.
        timeout: Seconds for opening a connection, and for each statement.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Enter a read-only transaction.

        Raises:
            JournalForbidden: The role lacks a privilege.
            JournalMissing: A queried object does not exist.
            JournalUnreachable: PostgreSQL does not answer.
            SettingsError: The URL is wrong.
        """
        if self._connection is None or self._connection.is_closed():
            self._connection = await self.connect()
        connection = self._connection
        milliseconds = int(self._timeout * 1000)
        try:
            with map_postgres_errors():
                async with connection.transaction(readonly=True):
                    await connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
                    yield connection
        except BaseException:
            # The next transaction must not see the state that a failed one leaves in the session.
            connection.terminate()
            self._connection = None
            raise

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open a further connection. The caller closes it. Raises the same errors as `transaction`."""
        arguments = {
            **build_connect_arguments(self._url),
            "timeout": self._timeout,
            "command_timeout": self._timeout,
            "statement_cache_size": 0,
            "server_settings": {"application_name": APPLICATION_NAME},
        }
        with map_postgres_errors():
            return await asyncpg.connect(**arguments)

    async def close(self) -> None:
        if self._connection is not None:
            await close_connection(self._connection)
