"""What the snapshots of a read replica leave out.

On a replica `pg_current_snapshot()` does not name the transactions in progress on the primary: it seems to have
seen them. So a snapshot is made whole in two steps. First the states of the transactions are looked at, and then the
journal is read: all that had ended before can be seen in what is read, and what ended in between tells so by its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import asyncpg

from stream_server.journal.connection import Connection, errors_mapped, far
from stream_server.protocol.cursor import Cursor

NOWHERE = Cursor("0", 1, 1)
"""A cursor that has seen nothing, of no journal."""


class Sight:
    """The eyes of one reader on a replica.

    Args:
        connection: Leads to the replica, which may be promoted at any time: all this holds on a primary too.
        queries: The blocks of `queries.sql`.
    """

    def __init__(self, connection: Connection, queries: Mapping[str, str]) -> None:
        self._connection = connection
        self._queries = queries
        self._before: str | None = None

    async def look(self, epoch: str) -> Cursor:
        """Return what can be seen at least by what is read from now on."""
        with errors_mapped():
            self._before = await self._connection.fetchval(self._queries["in_progress"], self._before)
        assert self._before is not None, "an aggregate has one row"
        return Cursor.from_snapshot(epoch, self._before)

    async def complete(self, before: Cursor) -> Cursor:
        """Return what can be seen now, exactly, as far as the journal goes."""
        with errors_mapped():
            rows = await self._connection.fetch(self._queries["written_after"], before.snapshot)
        return before.with_seen([row["txid"] for row in rows])


async def seen_rows(
    connection: Connection, queries: Mapping[str, str], name: str, *arguments: object
) -> tuple[list[asyncpg.Record], Cursor]:
    """Ask a query whose rows hold their `epoch` and `snapshot`, and return with them what they were read with.

    Where there are no rows, the cursor says nothing.
    """
    if not far(connection).replica:
        rows = await connection.fetch(queries[name], *arguments)
        return rows, Cursor.from_snapshot(rows[0]["epoch"], rows[0]["snapshot"]) if rows else NOWHERE
    sight = Sight(connection, queries)
    before = await sight.look(NOWHERE.epoch)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(queries[name], *arguments)
        seen = await sight.complete(before)
    return rows, replace(seen, epoch=rows[0]["epoch"]) if rows else NOWHERE
