"""Reads of the journal, on the connection of the tail."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from stream_server.domain.transition import Transition, UndecodableRow, decode_row
from stream_server.errors import JournalMissing, JournalUnreachable
from stream_server.journal.connection import DatabaseConnection, close_connection, connect, map_postgres_errors
from stream_server.journal.human_input import InstanceName, fetch_requests
from stream_server.journal.origin import adopt_foreign_journal
from stream_server.journal.recent_rows import RecentRow
from stream_server.journal.replica_snapshot import ReplicaSnapshot
from stream_server.journal.row_slices import call_for_rows
from stream_server.journal.status import JournalStatus, load_queries_for, read_status
from stream_server.journal.undecodable_rows import LoggedCauses
from stream_server.protocol.cursor import JournalPosition, JournalRow

log = logging.getLogger(__name__)

READER_SETTINGS = ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "jit = off")
"""One plan for all positions, so that reads need no planning and no compilation. It must use the index also if it was
made while the journal was small."""

RESTORE_LOCK_TIMEOUT = "500ms"
"""How long restoring triggers may wait for a lock. Airflow's statements wait behind it."""


class JournalHead(NamedTuple):
    """The end of the journal."""

    position: JournalPosition
    """Position of a reader that starts here: rows committed from now on come after it."""

    dropped_writes: int
    """Number of writes that the triggers dropped since the installation."""


class SkippedRow(NamedTuple):
    """A row that could not be decoded."""

    seq: int
    cause: str


class JournalBatch(NamedTuple):
    """The result of one read."""

    transitions: list[Transition]
    """In the order of `seq`."""

    rows: list[RecentRow]
    """All rows that were read, also those that are no transitions."""

    skipped: list[SkippedRow]
    """Rows that could not be decoded. The position moves past them."""

    position: JournalPosition
    """Where the next read starts. It covers no transaction that is younger than the newest row: after a crash,
    PostgreSQL may assign the ids of transactions without committed rows again."""

    full_snapshot: JournalPosition
    """The snapshot of the read, which may cover transactions younger than the newest row."""

    dropped_writes: int
    """Number of writes that the triggers dropped since the installation."""

    read_at: datetime
    """Time of the read by PostgreSQL's clock."""

    missed_pruned_rows: bool
    """Whether rows after the position were pruned before they were read."""


class JournalReader:
    """Reads the rows after a position, on a connection of its own."""

    def __init__(self, connection: DatabaseConnection, queries: dict[str, str]) -> None:
        self.connection = connection
        self._queries = queries
        self._replica_snapshot = ReplicaSnapshot(connection, queries) if connection.server_info.is_replica else None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[JournalReader]:
        """Open a connection. Close it on exit.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        try:
            if not connection.server_info.is_pooled:
                with map_postgres_errors():
                    await connection.execute("; ".join(f"SET {setting}" for setting in READER_SETTINGS))
            yield cls(connection, await load_queries_for(connection, only_journal=True))
        finally:
            await close_connection(connection)

    async def read_head(self) -> JournalHead:
        (row,) = await self._fetch("journal_head")
        snapshot = JournalPosition.from_snapshot(row["epoch"], row["snapshot"])
        if self._replica_snapshot is not None:
            lower_bound = await self._replica_snapshot.read_lower_bound(row["epoch"])
            snapshot = await self._replica_snapshot.add_written_transactions(lower_bound)
        return JournalHead(limit_to_newest_row(snapshot, row), row["dropped_writes"])

    async def read_newest_rows(self, at_most: int) -> list[RecentRow]:
        """Return the rows with the highest transaction ids, the highest first."""
        return [RecentRow(*row) for row in await self._fetch("newest_rows", at_most)]

    async def is_any_row_missing(self, rows: Sequence[RecentRow]) -> bool:
        """Whether a row is missing from the journal that was not pruned: the journal has another history."""
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        (row,) = await self._fetch("is_any_row_missing", *columns)
        return bool(row["exists"])

    async def read_after(self, position: JournalPosition) -> JournalBatch:
        """Return the rows after a position. See the comment on positions in `queries.sql`.

        Raises:
            JournalUnreachable: The journal has another epoch than the position, or PostgreSQL does not answer.
        """
        lower_bound = None
        if self._replica_snapshot is not None:
            # Before the rows are read; see the docstring of replica_snapshot.py.
            lower_bound = await self._replica_snapshot.read_lower_bound(position.epoch)
        records = await self._fetch("rows_after", position.snapshot)
        first = records[0]
        if first["epoch"] != position.epoch:
            raise JournalUnreachable("The journal was replaced by another one")
        # The next position is computed from all rows, also undecodable ones: otherwise they would be read again for
        # ever.
        rows, transitions, skipped = await call_for_rows(_decode_batch, records)
        if lower_bound is None:
            snapshot = JournalPosition.from_snapshot(position.epoch, first["snapshot"])
        else:
            snapshot = lower_bound.with_visible([row.txid for row in rows])
        newest = max(rows, key=lambda row: row.txid, default=None)
        # The snapshot may cover transactions above the newest row. They have no rows, at least none that are committed,
        # so the next position must not cover them; see limit_to_newest_row.
        if newest is not None and newest.txid >= position.xmax:
            next_position = snapshot.up_to(newest.txid, JournalRow.from_time(newest.seq, newest.at))
        else:
            next_position = snapshot.up_to(position.xmax - 1, position.row)
        return JournalBatch(
            transitions=transitions,
            rows=rows,
            skipped=skipped,
            position=next_position,
            full_snapshot=snapshot,
            dropped_writes=first["dropped_writes"],
            read_at=first["read_at"],
            missed_pruned_rows=first["pruned_to"] is not None and not position.is_visible(first["pruned_to"]),
        )

    async def adopt_foreign_journal(self) -> bool:
        """Start a new history if the ids of the journal are those of another cluster. Return whether this was done.

        Raises:
            JournalMissing: The ids are those of another cluster, and no new history can be started now.
        """
        return await adopt_foreign_journal(self.connection, self._queries)

    async def read_output_bodies(self, rows: list[int]) -> dict[int, str | None]:
        """Return the output of journal rows, by row."""
        return {row["id"]: row["body"] for row in await self._fetch("output_bodies", rows, None)}

    async def read_requests(self, ids: list[UUID], names: list[InstanceName]) -> Sequence[asyncpg.Record]:
        """Return the requests for human input of task instances; see `add_requests`."""
        if ids and "human_input" not in self._queries:
            # The rows show that the table exists: Airflow was upgraded since the connection was opened.
            self._queries = await load_queries_for(self.connection, only_journal=True)
        try:
            return await fetch_requests(self.connection, self._queries, ids, names)
        except JournalMissing:
            # Airflow was migrated to tables with other columns.
            self._queries = await load_queries_for(self.connection, only_journal=True)
            return await fetch_requests(self.connection, self._queries, ids, names)

    async def is_replica(self) -> bool:
        """Whether the server is a read replica now: it may have been promoted since the connection was opened."""
        (row,) = await self._fetch("is_replica")
        return bool(row["pg_is_in_recovery"])

    async def restore_triggers(self) -> int:
        """Restore the triggers that are missing or switched themselves off, and return how many were missing.

        Restore none if a table can't be locked within `RESTORE_LOCK_TIMEOUT`. The next check tries again.

        Raises:
            JournalForbidden: The role lacks a privilege.
            JournalUnreachable: PostgreSQL does not answer.
        """
        with map_postgres_errors(), suppress(asyncpg.LockNotAvailableError):
            async with self.connection.transaction():
                await self.connection.execute(f"SET LOCAL lock_timeout = '{RESTORE_LOCK_TIMEOUT}'")
                return int(await self.connection.fetchval(self._queries["restore_triggers"]))
        return 0

    async def read_status(self) -> JournalStatus:
        """Return the status of the journal and its triggers."""
        return await read_status(self.connection)

    async def _fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        with map_postgres_errors():
            if not self.connection.server_info.is_pooled:
                return await self.connection.fetch(self._queries[name], *arguments)
            async with self.connection.transaction():
                await self.connection.execute("; ".join(f"SET LOCAL {setting}" for setting in READER_SETTINGS))
                return await self.connection.fetch(self._queries[name], *arguments)


def limit_to_newest_row(snapshot: JournalPosition, row: asyncpg.Record) -> JournalPosition:
    """Return the part of a snapshot up to the newest row of the journal.

    A position must not cover transactions without rows. After a crash, PostgreSQL may assign their ids again, and the
    rows that the new transactions write would count as read.
    """
    newest, pruned_to = row["newest"] or 1, row["pruned_to"] or 1
    if newest < pruned_to or row["newest"] is None:
        return snapshot.up_to(pruned_to)
    return snapshot.up_to(newest, JournalRow.from_time(row["newest_id"], row["newest_at"]))


def _decode_batch(
    records: Sequence[asyncpg.Record],
) -> tuple[list[RecentRow], list[Transition], list[SkippedRow]]:
    """Return all rows of a read, the transitions, and the rows that can't be decoded."""
    found = [record[5:] for record in records if record["id"] is not None]
    return ([RecentRow(*columns[:3]) for columns in found], *decode_rows(found))


def decode_rows(rows: Iterable[tuple[Any, ...]]) -> tuple[list[Transition], list[SkippedRow]]:
    """Return the transitions of rows, and the rows that can't be decoded. Columns are in the order of the fields."""
    transitions: list[Transition] = []
    skipped: list[SkippedRow] = []
    for columns in rows:
        try:
            transitions.append(decode_row(columns))
        except UndecodableRow as error:
            skipped.append(SkippedRow(columns[0], str(error)))
    return transitions, skipped


def log_skipped_rows(skipped: Iterable[SkippedRow], logged_causes: LoggedCauses) -> None:
    """Log each row whose cause was not logged before."""
    for seq, cause in skipped:
        if logged_causes.add_if_new(cause):
            log.error(
                "Skipped row %d of the journal, and all others with the same cause: %s",
                seq,
                cause,
                extra={"action": "journal_row_skipped"},
            )
