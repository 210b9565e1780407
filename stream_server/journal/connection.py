"""Connecting to PostgreSQL, and what its errors mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from stream_server.errors import JournalForbidden, JournalMissing, JournalUnreachable, SettingsError
from stream_server.journal.dsn import normalize

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

COMMAND_TIMEOUT = 30.0
"""Seconds to wait for an answer, after which a connection counts as dead."""

GOODBYE_TIMEOUT = 1.0
"""Seconds that PostgreSQL may take to close a connection."""

APPLICATION_NAME = "stream_server"
"""What `pg_stat_activity.application_name` shows for our sessions."""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""A connection, whether it is one's own or a pool's."""

_NOT_INSTALLED = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
)
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncio.TimeoutError,
    OSError,
)


@contextmanager
def errors_mapped() -> Iterator[None]:
    """Turn what asyncpg raises into our `Unavailable` errors; most specific first."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise JournalForbidden(f"The database role lacks a privilege: {error}") from error
    except _NOT_INSTALLED as error:
        raise JournalMissing(
            f"The journal is not installed, or of another version ({error}); run `stream-server install`"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"The database URL is wrong: {error}") from error
    except _GONE as error:
        raise JournalUnreachable(f"PostgreSQL does not answer ({_describe(error)})") from error
    except asyncpg.PostgresError as error:
        raise JournalUnreachable(f"PostgreSQL refuses ({_describe(error)})") from error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def connection_arguments(url: str) -> dict[str, Any]:
    """Return the keyword arguments with which asyncpg connects to a database URL."""
    return {
        "dsn": normalize(url),
        "timeout": CONNECT_TIMEOUT,
        "command_timeout": COMMAND_TIMEOUT,
        "server_settings": {"application_name": APPLICATION_NAME},
    }


async def disconnect(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Say goodbye, so that PostgreSQL's log stays clean, but do not wait for a server that is gone."""
    try:
        await connection.close(timeout=GOODBYE_TIMEOUT)
    except (*_GONE, asyncpg.PostgresError):
        connection.terminate()


async def connect(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """Open one connection.

    Raises:
        JournalUnreachable: PostgreSQL does not answer, or does not let us in.
        SettingsError: The URL is wrong.
    """
    with errors_mapped():
        return await asyncpg.connect(**connection_arguments(url))
