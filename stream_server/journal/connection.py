"""Connections to PostgreSQL, and the mapping of asyncpg's errors to ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from typing_extensions import override

from stream_server.errors import (
    JournalForbidden,
    JournalMissing,
    JournalUnreachable,
    NulInText,
    ReadReplica,
    SettingsError,
)
from stream_server.journal.password_source import PasswordUnavailable, make_password_reader
from stream_server.urls import DatabaseUrl

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

HOST_TIMEOUT = 3.0
"""Seconds to wait for each host but the last, if the URL names several."""

COMMAND_TIMEOUT = 30.0
"""Seconds to wait for a response. After that, the connection counts as dead."""

CLOSE_TIMEOUT = 1.0
"""Seconds that PostgreSQL may take to close a connection."""

APPLICATION_NAME = "stream_server"
"""`pg_stat_activity.application_name` of our sessions."""

AnyConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""A connection of our own, or one that a pool lends."""

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class ServerInfo(NamedTuple):
    """What a connection leads to."""

    is_pooled: bool = False
    """Whether a pooler is in between. It may assign each transaction to another server process."""

    is_replica: bool = False
    """Whether the server was a read replica when the connection was opened."""


class DatabaseConnection(_Connection):
    """A connection with its `ServerInfo`.

    Through a pooler it leaves no state in the server session, which may serve another client next: no settings, no
    locks, no named statements.
    """

    __slots__ = ("server_info",)

    server_info: ServerInfo

    @override
    def get_reset_query(self) -> str:
        # A pool runs it between two uses. Through a pooler, it would reset the session of another client.
        return "" if self.server_info.is_pooled else super().get_reset_query()

    async def detect_server(self) -> None:
        """Set `server_info`.

        A pooler announces a process id of its own, so that differs from `pg_backend_pid()`. The number of rows encodes
        both facts, and the command tag contains it. So the simple query protocol is enough: nothing is prepared.
        """
        status = await self.execute(
            f"SELECT FROM generate_series(1, (pg_backend_pid() <> {self.get_server_pid()})::integer"
            " + 2 * pg_is_in_recovery()::integer)"
        )
        found = int(status.removeprefix("SELECT "))
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
    """Raise errors of asyncpg as errors of ours. The order of the clauses matters: the most specific class is first."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise JournalForbidden(f"The database role lacks a privilege: {error}") from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ReadReplica(
            "The database of this server is a read replica, which can't store anything. Use a server at the primary, or"
            " omit what must be stored: an Idempotency-Key, a ticket, on_disconnect=cancel"
        ) from error
    except _OBJECT_MISSING as error:
        raise JournalMissing(
            f"The journal is not installed, or has another version ({error}); run `stream-server install`"
        ) from error
    except asyncpg.CharacterNotInRepertoireError as error:
        raise NulInText from error
    except PasswordUnavailable as error:
        raise JournalUnreachable(f"There is no password for PostgreSQL: {error}") from error
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"The database URL is wrong: {error}") from error
    except _UNREACHABLE as error:
        raise JournalUnreachable(f"PostgreSQL does not answer ({_describe_error(error)})") from error
    except asyncpg.PostgresError as error:
        raise JournalUnreachable(f"PostgreSQL reports an error ({_describe_error(error)})") from error


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def build_connect_arguments(url: str) -> dict[str, Any]:
    """Return asyncpg's keyword arguments for a database URL.

    The password may be a function, which asyncpg calls for each connection.
    """
    parsed = DatabaseUrl.parse(url)
    arguments: dict[str, Any] = {
        "dsn": parsed.text,
        "timeout": parsed.connect_timeout or CONNECT_TIMEOUT,
        "command_timeout": COMMAND_TIMEOUT,
        "server_settings": {"application_name": APPLICATION_NAME},
    }
    if (read_password := make_password_reader(parsed.password_file, parsed.password_command)) is not None:
        arguments["password"] = read_password
    if "sslrootcert=system" in parsed.query.split("&"):
        # As in libpq: the certificates that the system trusts, and the host is verified. asyncpg would look for a file
        # of this name, so `ssl` replaces it.
        arguments["ssl"] = ssl.create_default_context()
    return arguments


async def close_connection(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Close a connection so that PostgreSQL logs no error, but abort it if the server does not respond."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except (*_UNREACHABLE, asyncpg.PostgresError):
        connection.terminate()


async def connect(url: str) -> DatabaseConnection:
    """Open a connection.

    Raises:
        JournalUnreachable: PostgreSQL does not answer, or rejects the login.
        SettingsError: The URL is not a valid PostgreSQL URL.
    """
    with map_postgres_errors():
        return await open_connection(**build_connect_arguments(url))


def get_server_info(connection: AnyConnection) -> ServerInfo:
    """Return the `ServerInfo` of a connection, also through a pool's proxy."""
    # The proxy has no public attribute for the connection that it wraps.
    session = getattr(connection, "_con", connection)
    assert isinstance(session, DatabaseConnection), "all connections are opened by open_connection"
    return session.server_info


async def open_connection(
    dsn: str,
    *,
    timeout: float,
    **arguments: Any,  # noqa: ANN401 # asyncpg's
) -> DatabaseConnection:
    """Connect to the first host of a URL that accepts the connection. Pools use this as their `connect`.

    asyncpg itself would wait for a host that does not respond until the whole timeout has passed.
    """
    *others, last = (url.text for url in DatabaseUrl.parse(dsn).split_hosts())
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
    # Without a statement cache, asyncpg uses unnamed statements only.
    return await _open_and_detect(dsn, {**arguments, "statement_cache_size": 0})


async def _open_and_detect(dsn: str, arguments: dict[str, Any]) -> DatabaseConnection:
    session = await asyncpg.connect(dsn, **{**arguments, "connection_class": DatabaseConnection})
    assert isinstance(session, DatabaseConnection), "this is the connection_class"
    try:
        await session.detect_server()
    except BaseException:
        session.terminate()
        raise
    return session
