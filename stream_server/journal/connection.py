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
from stream_server.journal.dsn import each_host, normalize

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

HOST_TIMEOUT = 3.0
"""Seconds to wait for each host, where the URL names several: one that hangs must not keep us from the next."""

COMMAND_TIMEOUT = 30.0
"""Seconds to wait for an answer, after which a connection counts as dead."""

GOODBYE_TIMEOUT = 1.0
"""Seconds that PostgreSQL may take to close a connection."""

APPLICATION_NAME = "stream_server"
"""What `pg_stat_activity.application_name` shows for our sessions."""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""A connection, whether it is one's own or a pool's."""

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class Far(NamedTuple):
    """What is at the other end of a connection."""

    pooled: bool = False
    """Whether a pooler stands between, which may give each transaction another server process."""

    replica: bool = False
    """Whether it was a read replica when we connected."""


class Session(_Connection):
    """A connection that knows what it leads to.

    Behind a pooler it leaves nothing behind: no setting, no lock and no named statement of ours meets another client.
    """

    __slots__ = ("far",)

    far: Far

    def get_reset_query(self) -> str:
        """Return what a pool of ours says between two uses; behind a pooler it would reset another client's session."""
        return "" if self.far.pooled else super().get_reset_query()

    async def look(self) -> None:
        """Find out what is there.

        A pooler makes up the process number that it announces. The command tag tells both, so that the simple protocol
        will do: nothing is prepared.
        """
        tag = await self.execute(
            f"SELECT FROM generate_series(1, (pg_backend_pid() <> {self.get_server_pid()})::integer"
            " + 2 * pg_is_in_recovery()::integer)"
        )
        found = int(tag.removeprefix("SELECT "))
        self.far = Far(pooled=bool(found & 1), replica=bool(found & 2))


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
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ReadReplica(
            "The database of this server is a read replica, where nothing can be kept. Ask a server at the primary, or"
            " leave out what must be kept: an Idempotency-Key, a ticket, on_disconnect=cancel"
        ) from error
    except _NOT_INSTALLED as error:
        raise JournalMissing(
            f"The journal is not installed, or of another version ({error}); run `stream-server install`"
        ) from error
    except asyncpg.CharacterNotInRepertoireError as error:
        raise NulInText from error
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


async def connect(url: str) -> Session:
    """Open one connection.

    Raises:
        JournalUnreachable: PostgreSQL does not answer, or does not let us in.
        SettingsError: The URL is wrong.
    """
    with errors_mapped():
        return await open_session(**connection_arguments(url))


def far(connection: Connection) -> Far:
    """Return what is at the other end of a session, also through a pool's proxy."""
    session = getattr(connection, "_con", connection)
    assert isinstance(session, Session), "connections of ours are made by open_session"
    return session.far


async def open_session(dsn: str, *, timeout: float, **arguments: Any) -> Session:  # noqa: ANN401 # handed on
    """Connect to the first host of a URL that will do; a pool's `connect`.

    asyncpg would wait for a host that hangs until all the time is up.
    """
    *others, last = each_host(dsn)
    for host in others:
        try:
            return await _open(host, {**arguments, "timeout": min(timeout, HOST_TIMEOUT)})
        except (*_GONE, asyncpg.PostgresError):
            continue
    return await _open(last, {**arguments, "timeout": timeout})


async def _open(dsn: str, arguments: dict[str, Any]) -> Session:
    session = await _look(dsn, arguments)
    if not session.far.pooled:
        return session
    await disconnect(session)
    # Without a cache asyncpg parses anew what it executes, under no name.
    return await _look(dsn, {**arguments, "statement_cache_size": 0})


async def _look(dsn: str, arguments: dict[str, Any]) -> Session:
    session = await asyncpg.connect(dsn, **{**arguments, "connection_class": Session})
    assert isinstance(session, Session), "the class that was asked for"
    try:
        await session.look()
    except BaseException:
        session.terminate()
        raise
    return session
