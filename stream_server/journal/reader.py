"""Reading the journal: the tail's own connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from stream_server.domain.transition import Transition, UndecodableRow, decode_row
from stream_server.domain.transition_frames import is_output
from stream_server.journal.connection import DatabaseConnection, close_connection, connect, map_postgres_errors
from stream_server.journal.installer import load_queries_for, read_status
from stream_server.journal.recent_rows import RecentRow
from stream_server.journal.replica_snapshot import ReplicaSnapshot
from stream_server.journal.undecodable_rows import Causes
from stream_server.protocol.cursor import JournalPosition, JournalRow

log = logging.getLogger(__name__)

READER_SETTINGS = ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "jit = off")
"""One plan serves every cursor: it need not be made anew, or compiled, for each read. It must use the index also if it
was made while the journal was small."""

RESTORE_LOCK_TIMEOUT = "500ms"
"""How long putting back triggers may wait for a lock, and make Airflow wait behind it."""


class JournalHead(NamedTuple):
    """Where the journal stands."""

    position: JournalPosition
    """Of a reader that wants only what comes from now on."""

    dropped_writes: int
    """How often the triggers could not write something down, since the journal was installed."""


class SkippedRow(NamedTuple):
    """A row that could not be decoded."""

    seq: int
    cause: str


class JournalBatch(NamedTuple):
    """What one read returns."""

    transitions: list[Transition]
    """In the order of `seq`."""

    rows: list[RecentRow]
    """All rows that were read, also those that are no transitions."""

    skipped: list[SkippedRow]
    """Rows that could not be decoded. The cursor moves past them."""

    position: JournalPosition
    """Where the next read goes on: it claims nothing of transactions younger than the newest row. A crash may forget
    those that were rolled back, and give their numbers to others."""

    full_snapshot: JournalPosition
    """The whole snapshot that the read was made with."""

    dropped_writes: int
    """How often the triggers could not write something down, since the journal was installed."""

    read_at: datetime
    """When it was read, by PostgreSQL's clock."""

    missed_pruned_rows: bool
    """Whether rows that the cursor had not seen were deleted before they could be read."""


class JournalReader:
    """Reads what a cursor has not seen, on a connection of its own."""

    def __init__(self, connection: DatabaseConnection, queries: dict[str, str]) -> None:
        self.connection = connection
        self._queries = queries
        self._replica_snapshot = ReplicaSnapshot(connection, queries) if connection.server_info.is_replica else None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[JournalReader]:
        """Connect, and disconnect at the end.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        try:
            if not connection.server_info.is_pooled:
                with map_postgres_errors():
                    await connection.execute("; ".join(f"SET {setting}" for setting in READER_SETTINGS))
            yield cls(connection, await load_queries_for(connection))
        finally:
            await close_connection(connection)

    async def read_head(self) -> JournalHead:
        """Return where the journal stands."""
        (row,) = await self._fetch("journal_now")
        seen = JournalPosition.from_snapshot(row["epoch"], row["snapshot"])
        if self._replica_snapshot is not None:
            seen = await self._replica_snapshot.add_written_transactions(
                await self._replica_snapshot.read_lower_bound(row["epoch"])
            )
        return JournalHead(limit_to_newest_row(seen, row), row["losses"])

    async def read_newest_rows(self, at_most: int) -> list[RecentRow]:
        """Return the rows of the youngest transactions, the youngest first."""
        return [RecentRow(*row) for row in await self._fetch("newest", at_most)]

    async def is_any_row_missing(self, marks: Sequence[RecentRow]) -> bool:
        """Tell whether a row is not in the journal any more, though it is not old enough to have been deleted."""
        columns = [list(column) for column in zip(*marks, strict=True)] or [[], [], []]
        (row,) = await self._fetch("lacks", *columns)
        return bool(row["exists"])

    async def read_after(self, cursor: JournalPosition) -> JournalBatch:
        """Return what a cursor has not seen."""
        before = None if self._replica_snapshot is None else await self._replica_snapshot.read_lower_bound(cursor.epoch)
        rows = await self._fetch("journal_after", cursor.snapshot)
        found = [row[4:] for row in rows if row["id"] is not None]
        # The cursor is computed from all rows, skipped ones included: else they would be read again for ever.
        marks = [RecentRow(*columns[:3]) for columns in found]
        transitions, skipped = decode_rows(found)
        newest = max(marks, key=lambda one: one.txid, default=None)
        if before is None:
            seen = JournalPosition.from_snapshot(cursor.epoch, rows[0]["snapshot"])
        else:
            seen = before.with_visible([one.txid for one in marks])
        if newest is not None and newest.txid >= cursor.xmax:
            told = seen.up_to(newest.txid, JournalRow.from_time(newest.seq, newest.at))
        else:
            told = seen.up_to(cursor.xmax - 1, cursor.row)
        first = rows[0]
        pruned = first["pruned_to"] is not None and not cursor.is_visible(first["pruned_to"])
        return JournalBatch(transitions, marks, skipped, told, seen, first["losses"], first["read_at"], pruned)

    async def add_output_bodies(
        self, transitions: Sequence[Transition], wanted: Callable[[Transition], bool]
    ) -> list[Transition]:
        """Return transitions with what tasks have said in those of them that are wanted."""
        asked = [one.seq for one in transitions if is_output(one) and wanted(one)]
        if not asked:
            return [*transitions]
        bodies = {row["id"]: row["body"] for row in await self._fetch("bodies", asked, None)}
        return [one._replace(body=bodies[one.seq]) if one.seq in bodies else one for one in transitions]

    async def is_replica(self) -> bool:
        """Tell whether this is a read replica, still."""
        (row,) = await self._fetch("is_replica")
        return bool(row["pg_is_in_recovery"])

    async def restore_triggers(self) -> int:
        """Put back the triggers that are missing, and return how many were.

        None is, where one of Airflow's tables could not be locked in time: better later than in Airflow's way.

        Raises:
            JournalForbidden: The role may not.
            JournalUnreachable: PostgreSQL does not answer.
        """
        with map_postgres_errors(), suppress(asyncpg.LockNotAvailableError):
            async with self.connection.transaction():
                await self.connection.execute(f"SET LOCAL lock_timeout = '{RESTORE_LOCK_TIMEOUT}'")
                return int(await self.connection.fetchval(self._queries["put_back"]))
        return 0

    async def find_trigger_problems(self) -> list[str]:
        """Tell what is wrong with the triggers, in words; empty if all is well."""
        return (await read_status(self.connection)).problems

    async def _fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        with map_postgres_errors():
            if not self.connection.server_info.is_pooled:
                return await self.connection.fetch(self._queries[name], *arguments)
            async with self.connection.transaction():
                await self.connection.execute("; ".join(f"SET LOCAL {setting}" for setting in READER_SETTINGS))
                return await self.connection.fetch(self._queries[name], *arguments)


def limit_to_newest_row(seen: JournalPosition, row: asyncpg.Record) -> JournalPosition:
    """Return the cursor that claims nothing of transactions younger than the newest row of the journal."""
    newest, pruned_to = row["newest"] or 1, row["pruned_to"] or 1
    if newest < pruned_to or row["newest"] is None:
        return seen.up_to(pruned_to)
    return seen.up_to(newest, JournalRow.from_time(row["newest_id"], row["newest_at"]))


def decode_rows(rows: Iterable[tuple[Any, ...]]) -> tuple[list[Transition], list[SkippedRow]]:
    """Return the transitions of rows, whose columns are in the order of the fields, and the rows that are none.

    Rows of kind `input` are in neither list: they name no run, and nothing consumes them yet.
    """
    transitions: list[Transition] = []
    skipped: list[SkippedRow] = []
    for columns in rows:
        try:
            transition = decode_row(columns)
        except UndecodableRow as error:
            skipped.append(SkippedRow(columns[0], str(error)))
        else:
            if transition is not None:
                transitions.append(transition)
    return transitions, skipped


def log_skipped(skipped: Iterable[SkippedRow], causes: Causes) -> None:
    """Log the rows whose cause was not logged yet."""
    for seq, cause in skipped:
        if causes.is_new(cause):
            log.error(
                "Skipped row %d of the journal, and all others with the same cause: %s",
                seq,
                cause,
                extra={"action": "journal_row_skipped"},
            )
