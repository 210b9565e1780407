"""What the snapshots of a read replica leave out.

On a replica `pg_current_snapshot()` does not name the transactions in progress on the primary: it seems to have
seen them. So a snapshot is made whole in two steps. First the states of the transactions are looked at, and then the
journal is read: all that had ended before can be seen in what is read, and what ended in between tells so by its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import asyncpg

from stream_server.journal.connection import AnyConnection, get_server_info, map_postgres_errors
from stream_server.protocol.cursor import JournalPosition

EMPTY_POSITION = JournalPosition("0", 1, 1)
"""A cursor that has seen nothing, of no journal."""


class ReplicaSnapshot:
    """The eyes of one reader on a replica.

    Args:
        connection: Leads to the replica, which may be promoted at any time: all this holds on a primary too.
        queries: The blocks of `queries.sql`.
    """

    def __init__(self, connection: AnyConnection, queries: Mapping[str, str]) -> None:
        self._connection = connection
        self._queries = queries
        self._before: str | None = None

    async def read_lower_bound(self, epoch: str) -> JournalPosition:
        """Return what can be seen at least by what is read from now on."""
        with map_postgres_errors():
            self._before = await self._connection.fetchval(self._queries["in_progress"], self._before)
        assert self._before is not None, "an aggregate has one row"
        return JournalPosition.from_snapshot(epoch, self._before)

    async def add_written_transactions(self, before: JournalPosition) -> JournalPosition:
        """Return what can be seen now, exactly, as far as the journal goes."""
        with map_postgres_errors():
            rows = await self._connection.fetch(self._queries["written_after"], before.snapshot)
        return before.with_visible([row["txid"] for row in rows])


async def fetch_with_snapshot(
    connection: AnyConnection, queries: Mapping[str, str], name: str, *arguments: object
) -> tuple[list[asyncpg.Record], JournalPosition]:
    """Ask a query whose rows hold their `epoch` and `snapshot`, and return with them what they were read with.

    Where there are no rows, the cursor says nothing.
    """
    if not get_server_info(connection).is_replica:
        rows = await connection.fetch(queries[name], *arguments)
        return rows, JournalPosition.from_snapshot(rows[0]["epoch"], rows[0]["snapshot"]) if rows else EMPTY_POSITION
    sight = ReplicaSnapshot(connection, queries)
    before = await sight.read_lower_bound(EMPTY_POSITION.epoch)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(queries[name], *arguments)
        seen = await sight.add_written_transactions(before)
    return rows, replace(seen, epoch=rows[0]["epoch"]) if rows else EMPTY_POSITION
