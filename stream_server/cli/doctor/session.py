"""The doctor's connections: nothing that is done in them can change anything or take long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from stream_server.journal.connection import build_connect_arguments, close_connection, map_postgres_errors

APPLICATION_NAME = "stream_server doctor"


class ReadOnlySession:
    """Connections to one database, made when they are needed.

    Each question has a transaction of its own, and no prepared statement outlives it: so it can be asked through any
    pooler.

    Args:
        url: Database URL.
        timeout: Seconds that connecting, or one statement, may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Enter a transaction that can only read.

        Raises:
            JournalForbidden: The role lacks a privilege.
            JournalMissing: What was asked for is not there.
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
            # What a question that failed leaves behind must not meet the next one.
            connection.terminate()
            self._connection = None
            raise

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Make a connection of its own, that the caller closes. Errors as for `transaction`."""
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
        """Close what is open."""
        if self._connection is not None:
            await close_connection(self._connection)
