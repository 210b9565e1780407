"""The cluster that the journal belongs to.

Transaction ids mean something only in the cluster that assigned them. A dump and restore, `pg_upgrade` and logical
replication bring the journal, with its ids and its epoch, into another cluster. There, old rows would count as new
ones, or never be pruned, and cursors would point anywhere. So the journal has the identity of its cluster
(`stream_server.foreign_reason()` in `services.sql`), and gets a new epoch where that differs.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from stream_server.errors import JournalMissing
from stream_server.journal.connection import AnyConnection, DatabaseConnection, map_postgres_errors
from stream_server.journal.queries import load_queries

ADOPT_LOCK_TIMEOUT = "500ms"
"""How long emptying the journal may wait for a lock. Airflow's transactions wait behind it."""

_DESCRIPTIONS = {
    "cluster": (
        "the journal is that of another cluster (a dump and restore, pg_upgrade or logical replication), whose"
        " transaction ids mean nothing here"
    ),
    "future": "the journal has transaction ids that this cluster has not assigned yet: it is that of another cluster",
    "subscription": (
        "a subscription (logical replication) writes to the journal, with the transaction ids of another cluster;"
        " drop the subscription, or exclude the schema stream_server from it"
    ),
}
_REMEDY = "; a server at the primary empties it and starts a new history, and so does `stream-server install`"


def describe_foreign_journal(reason: str) -> str:
    """Return a sentence for a result of `find_foreign_reason`."""
    description = _DESCRIPTIONS[reason]
    return description if reason == "subscription" else description + _REMEDY


async def find_foreign_reason(connection: AnyConnection) -> str | None:
    """Return why the transaction ids of the journal are not those of this cluster; `None` if they are.

    Also `None` if the journal is older than this check, or the role may not call it; `stream-server doctor` reports
    that. Errors of asyncpg are not mapped.
    """
    queries = load_queries()
    if not await connection.fetchval(queries["is_origin_known"]):
        return None
    reason: str | None = await connection.fetchval(queries["foreign_reason"])
    return reason


async def adopt_foreign_journal(connection: DatabaseConnection, queries: Mapping[str, str]) -> bool:
    """Start a new history if the ids of the journal are those of another cluster. Return whether this was done.

    Raises:
        JournalForbidden: The role lacks a privilege.
        JournalMissing: The ids are those of another cluster, and no new history can be started now: on a read replica,
            while a subscription writes to the journal, or while another transaction does.
        JournalUnreachable: PostgreSQL does not answer.
    """
    with map_postgres_errors():
        reason = await find_foreign_reason(connection)
        if reason is None:
            return False
        problem = f"The journal can't be read: {describe_foreign_journal(reason)}"
        if connection.server_info.is_replica:
            raise JournalMissing(problem)
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{ADOPT_LOCK_TIMEOUT}'")
                is_adopted = bool(await connection.fetchval(queries["adopt_journal"]))
        except asyncpg.LockNotAvailableError as error:
            raise JournalMissing(f"{problem}. It is in use: see pg_stat_activity for long transactions") from error
        if reason == "subscription":
            raise JournalMissing(problem)
        return is_adopted
