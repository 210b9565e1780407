"""Connecting to PostgreSQL, and what its errors mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from stream_server.errors import (
    JournalForbidden,
    JournalMissing,
    JournalUnreachable,
    NulInText,
    ReadReplica,
    SettingsError,
)
from stream_server.journal.dsn import normalize_url, split_hosts

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

HOST_TIMEOUT = 3.0
"""Seconds to wait for each host, where the URL names several: one that hangs must not keep us from the next."""

COMMAND_TIMEOUT = 30.0
"""Seconds to wait for an answer, after which a connection counts as dead."""

CLOSE_TIMEOUT = 1.0
"""Seconds that PostgreSQL may take to close a connection."""

APPLICATION_NAME = "stream_server"
"""What `pg_stat_activity.application_name` shows for our sessions."""

AnyConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""A connection, whether it is one's own or a pool's."""

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class ServerInfo(NamedTuple):
    """What is at the other end of a connection."""

    is_pooled: bool = False
    """Whether a pooler stands between, which may give each transaction another server process."""

    is_replica: bool = False
    """Whether it was a read replica when we connected."""


class DatabaseConnection(_Connection):
    """A connection that knows what it leads to.

    Behind a pooler it leaves nothing behind: no setting, no lock and no named statement of ours meets another client.
    """

    __slots__ = ("server_info",)

    server_info: ServerInfo

    def get_reset_query(self) -> str:
        """Return what a pool of ours says between two uses; behind a pooler it would reset another client's session."""
        return "" if self.server_info.is_pooled else super().get_reset_query()

    async def detect_server(self) -> None:
        """Find out what is there.

        A pooler makes up the process number that it announces. The command tag tells both, so that the simple protocol
        will do: nothing is prepared.
        """
        tag = await self.execute(
            f"SELECT FROM generate_series(1, (pg_backend_pid() <> {self.get_server_pid()})::integer"
            " + 2 * pg_is_in_recovery()::integer)"
        )
        found = int(tag.removeprefix("SELECT "))
        self.server_info = ServerInfo(is_pooled=bool(found & 1), is_replica=bool(found & 2))


_OBJECT_MISSING = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
)
_UNREACHABLE = (
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
def map_postgres_errors() -> Iterator[None]:
    """Turn what asyncpg raises into our `Unavailable` errors; most specific first."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise JournalForbidden(f"The database role lacks a privilege: {error}") from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ReadReplica(
            "The database of this server is a read replica, where nothing can be kept. Ask a server at the primary, or"
            " leave out what must be kept: an Idempotency-Key, a ticket, on_disconnect=cancel"
        ) from error
    except _OBJECT_MISSING as error:
        raise JournalMissing(
            f"The journal is not installed, or of another version ({error}); run `stream-server install`"
        ) from error
    except asyncpg.CharacterNotInRepertoireError as error:
        raise NulInText from error
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"The database URL is wrong: {error}") from error
    except _UNREACHABLE as error:
        raise JournalUnreachable(f"PostgreSQL does not answer ({_describe_error(error)})") from error
    except asyncpg.PostgresError as error:
        raise JournalUnreachable(f"PostgreSQL refuses ({_describe_error(error)})") from error


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def build_connect_arguments(url: str) -> dict[str, Any]:
    """Return the keyword arguments with which asyncpg connects to a database URL."""
    return {
        "dsn": normalize_url(url),
        "timeout": CONNECT_TIMEOUT,
        "command_timeout": COMMAND_TIMEOUT,
        "server_settings": {"application_name": APPLICATION_NAME},
    }


async def close_connection(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Say goodbye, so that PostgreSQL's log stays clean, but do not wait for a server that is gone."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except (*_UNREACHABLE, asyncpg.PostgresError):
        connection.terminate()


async def connect(url: str) -> DatabaseConnection:
    """Open one connection.

    Raises:
        JournalUnreachable: PostgreSQL does not answer, or does not let us in.
        SettingsError: The URL is wrong.
    """
    with map_postgres_errors():
        return await open_connection(**build_connect_arguments(url))


def get_server_info(connection: AnyConnection) -> ServerInfo:
    """Return what is at the other end of a session, also through a pool's proxy."""
    session = getattr(connection, "_con", connection)
    assert isinstance(session, DatabaseConnection), "connections of ours are made by open_session"
    return session.server_info


async def open_connection(dsn: str, *, timeout: float, **arguments: Any) -> DatabaseConnection:  # noqa: ANN401 # handed on
    """Connect to the first host of a URL that will do; a pool's `connect`.

    asyncpg would wait for a host that hangs until all the time is up.
    """
    *others, last = split_hosts(dsn)
    for host in others:
        try:
            return await _open_host(host, {**arguments, "timeout": min(timeout, HOST_TIMEOUT)})
        except (*_UNREACHABLE, asyncpg.PostgresError):
            continue
    return await _open_host(last, {**arguments, "timeout": timeout})


async def _open_host(dsn: str, arguments: dict[str, Any]) -> DatabaseConnection:
    session = await _open_and_detect(dsn, arguments)
    if not session.server_info.is_pooled:
        return session
    await close_connection(session)
    # Without a cache asyncpg parses anew what it executes, under no name.
    return await _open_and_detect(dsn, {**arguments, "statement_cache_size": 0})


async def _open_and_detect(dsn: str, arguments: dict[str, Any]) -> DatabaseConnection:
    session = await asyncpg.connect(dsn, **{**arguments, "connection_class": DatabaseConnection})
    assert isinstance(session, DatabaseConnection), "the class that was asked for"
    try:
        await session.detect_server()
    except BaseException:
        session.terminate()
        raise
    return session
