"""Snapshots of a read replica, completed with the transactions that they leave out.

On a replica, `pg_current_snapshot()` does not list the transactions in progress on the primary, so it claims to cover
them. A correct snapshot takes two steps, in this order:

1. Read the states of the transactions (`read_lower_bound`). Those that are not in progress any more are visible to
   every later query.
2. Read the journal. Its rows show which of the others have ended in between.

If the journal were read first, a transaction that commits between the steps would count as covered, and its rows would
never be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import asyncpg

from stream_server.journal.connection import AnyConnection, get_server_info, map_postgres_errors
from stream_server.journal.row_slices import fetch_in_slices
from stream_server.protocol.cursor import JournalPosition

EMPTY_POSITION = JournalPosition("0", 1, 1)
"""A position that covers nothing, of no journal."""


class ReplicaSnapshot:
    """Computes positions for one reader on a replica. They are correct on a primary too: a replica may be promoted.

    Args:
        connection: Connection to the replica.
        queries: The blocks of `queries.sql`.
    """

    def __init__(self, connection: AnyConnection, queries: Mapping[str, str]) -> None:
        self._connection = connection
        self._queries = queries
        self._last_result: str | None = None

    async def read_lower_bound(self, epoch: str) -> JournalPosition:
        """Return a position whose transactions are all visible to later queries, which may see more."""
        with map_postgres_errors():
            self._last_result = await self._connection.fetchval(self._queries["replica_snapshot"], self._last_result)
        assert self._last_result is not None, "the query returns one row"
        return JournalPosition.from_snapshot(epoch, self._last_result)

    async def add_written_transactions(self, lower_bound: JournalPosition) -> JournalPosition:
        """Return a lower bound plus the transactions with rows in the journal: exact for the snapshot of this read."""
        with map_postgres_errors():
            rows = await self._connection.fetch(self._queries["transactions_after"], lower_bound.snapshot)
        return lower_bound.with_visible([row["txid"] for row in rows])


async def fetch_with_snapshot(
    connection: AnyConnection, queries: Mapping[str, str], name: str, *arguments: object
) -> tuple[list[asyncpg.Record], JournalPosition]:
    """Run a query whose rows have the columns `epoch` and `snapshot`. Return the rows and their position.

    If there are no rows, the position is `EMPTY_POSITION`.
    """
    if not get_server_info(connection).is_replica:
        rows = await fetch_in_slices(connection, queries[name], *arguments)
        return rows, JournalPosition.from_snapshot(rows[0]["epoch"], rows[0]["snapshot"]) if rows else EMPTY_POSITION
    replica_snapshot = ReplicaSnapshot(connection, queries)
    lower_bound = await replica_snapshot.read_lower_bound(EMPTY_POSITION.epoch)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await fetch_in_slices(connection, queries[name], *arguments)
        position = await replica_snapshot.add_written_transactions(lower_bound)
    return rows, replace(position, epoch=rows[0]["epoch"]) if rows else EMPTY_POSITION
