"""Reading the journal and Airflow's tables.

`Reader` is the tail's own connection. `Runs` answers for joiners, from a small pool.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg
import msgspec

from stream_server.cursor import Cursor, Row
from stream_server.errors import JournalMissing, RunNotFound
from stream_server.frames import RunInfo
from stream_server.graph import Graph
from stream_server.journal.connection import (
    GOODBYE_TIMEOUT,
    Connection,
    Session,
    connect,
    connection_arguments,
    disconnect,
    errors_mapped,
    open_session,
)
from stream_server.journal.install import queries_for, read_status
from stream_server.journal.replica import Sight, seen_rows
from stream_server.marks import Mark
from stream_server.outcome import Value, Values
from stream_server.run_state import Instance, Origin, RunKey, RunState
from stream_server.transition import Kind, Transition

READER_SETTINGS = ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "jit = off")
"""One plan serves every cursor: it need not be made anew, or compiled, for each read. It must use the index also if it
was made while the journal was small."""

PUT_BACK_LOCK_TIMEOUT = "500ms"
"""How long putting back triggers may wait for a lock, and make Airflow wait behind it."""

MAX_HISTORY = 5000
"""Transitions that are told one by one to who comes later; beyond that, a snapshot says more."""

MAX_GRAPHS = 256
"""DAG versions whose structure is kept in memory."""


class Standing(NamedTuple):
    """Where the journal stands."""

    cursor: Cursor
    """Of a reader that wants only what comes from now on."""

    losses: int
    """How often the triggers could not write something down, since the journal was installed."""


class Measures(NamedTuple):
    """How large the journal is, and what else only the database knows."""

    live_rows: int
    """As PostgreSQL's statistics estimate them."""

    dead_rows: int
    """Those deleted that vacuum has not removed yet; an estimate, too."""

    table_bytes: int
    index_bytes: int
    losses: int
    """How often the triggers could not write something down, since the journal was installed."""

    queue_usage: float
    """Share of PostgreSQL's queue of notifications that is full."""


class Batch(NamedTuple):
    """What one read returns."""

    transitions: list[Transition]
    """In the order of `seq`."""

    cursor: Cursor
    """Where the next read goes on: it claims nothing of transactions younger than the newest row. A crash may forget
    those that were rolled back, and give their numbers to others."""

    seen: Cursor
    """The whole snapshot that the read was made with."""

    losses: int
    """How often the triggers could not write something down, since the journal was installed."""

    read_at: datetime
    """When it was read, by PostgreSQL's clock."""

    pruned: bool
    """Whether rows that the cursor had not seen were deleted before they could be read."""


class Reader:
    """Reads what a cursor has not seen, on a connection of its own."""

    def __init__(self, connection: Session, queries: dict[str, str]) -> None:
        self.connection = connection
        self._queries = queries
        self._sight = Sight(connection, queries) if connection.far.replica else None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Reader]:
        """Connect, and disconnect at the end.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        connection = await connect(url)
        try:
            if not connection.far.pooled:
                with errors_mapped():
                    await connection.execute("; ".join(f"SET {setting}" for setting in READER_SETTINGS))
            yield cls(connection, await queries_for(connection))
        finally:
            await disconnect(connection)

    async def now(self) -> Standing:
        """Return where the journal stands."""
        (row,) = await self._fetch("journal_now")
        seen = Cursor.from_snapshot(row["epoch"], row["snapshot"])
        if self._sight is not None:
            seen = await self._sight.complete(await self._sight.look(row["epoch"]))
        return Standing(_as_far_as_written(seen, row), row["losses"])

    async def newest(self, at_most: int) -> list[Mark]:
        """Return the rows of the youngest transactions, the youngest first."""
        return [Mark(*row) for row in await self._fetch("newest", at_most)]

    async def lacks(self, marks: Sequence[Mark]) -> bool:
        """Tell whether a row is not in the journal any more, though it is not old enough to have been deleted."""
        columns = [list(column) for column in zip(*marks, strict=True)] or [[], [], []]
        (row,) = await self._fetch("lacks", *columns)
        return bool(row["exists"])

    async def after(self, cursor: Cursor) -> Batch:
        """Return what a cursor has not seen."""
        before = None if self._sight is None else await self._sight.look(cursor.epoch)
        rows = await self._fetch("journal_after", cursor.snapshot)
        transitions = [_transition(row[4:]) for row in rows if row["id"] is not None]
        newest = max(transitions, key=lambda one: one.txid, default=None)
        if before is None:
            seen = Cursor.from_snapshot(cursor.epoch, rows[0]["snapshot"])
        else:
            seen = before.with_seen([one.txid for one in transitions])
        if newest is not None and newest.txid >= cursor.xmax:
            told = seen.up_to(newest.txid, Row.of(newest.seq, newest.at))
        else:
            told = seen.up_to(cursor.xmax - 1, cursor.row)
        first = rows[0]
        pruned = first["pruned_to"] is not None and not cursor.saw(first["pruned_to"])
        return Batch(transitions, told, seen, first["losses"], first["read_at"], pruned)

    async def is_replica(self) -> bool:
        """Tell whether this is a read replica, still."""
        (row,) = await self._fetch("is_replica")
        return bool(row["pg_is_in_recovery"])

    async def put_back(self) -> int:
        """Put back the triggers that are missing, and return how many were.

        None is, where one of Airflow's tables could not be locked in time: better later than in Airflow's way.

        Raises:
            JournalForbidden: The role may not.
            JournalUnreachable: PostgreSQL does not answer.
        """
        with errors_mapped(), suppress(asyncpg.LockNotAvailableError):
            async with self.connection.transaction():
                await self.connection.execute(f"SET LOCAL lock_timeout = '{PUT_BACK_LOCK_TIMEOUT}'")
                return int(await self.connection.fetchval(self._queries["put_back"]))
        return 0

    async def problems(self) -> list[str]:
        """Tell what is wrong with the triggers, in words; empty if all is well."""
        return (await read_status(self.connection)).problems

    async def _fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        with errors_mapped():
            if not self.connection.far.pooled:
                return await self.connection.fetch(self._queries[name], *arguments)
            async with self.connection.transaction():
                await self.connection.execute("; ".join(f"SET LOCAL {setting}" for setting in READER_SETTINGS))
                return await self.connection.fetch(self._queries[name], *arguments)


class Runs:
    """What joiners need to know of runs, from a small pool of connections."""

    def __init__(self, url: str, *, pool_size: int, max_result_bytes: int) -> None:
        self._url = url
        self._pool_size = pool_size
        self._max_result_bytes = max_result_bytes
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._queries: dict[str, str] | None = None
        self._graphs: OrderedDict[UUID, Graph] = OrderedDict()
        self._marks: OrderedDict[UUID, frozenset[str]] = OrderedDict()

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), GOODBYE_TIMEOUT)
        except asyncio.TimeoutError:
            self._pool.terminate()

    async def run_state(self, key: RunKey) -> tuple[RunState, Cursor]:
        """Read a run, and the cursor that goes on from there.

        Raises:
            RunNotFound: Airflow knows no such run.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.connection() as (connection, queries):
            rows, seen = await seen_rows(connection, queries, "run_snapshot", *key)
            if not rows:
                raise RunNotFound(*key)
            run = _run_state(key, rows)
            versions = Counter(row["dag_version_id"] for row in rows if row["dag_version_id"])
            if versions:
                version = versions.most_common(1)[0][0]
                run.graph = await self._graph(connection, queries, version)
                run.remembered_results = await self._marked(connection, queries, key.dag_id, version)
        return run, _as_far_as_written(seen, rows[0])

    async def history(self, key: RunKey | None, since: Cursor) -> list[Transition] | None:
        """Read the transitions of a run, or of all runs, that a cursor has not seen.

        Returns:
            `None` where they are too many to be worth telling one by one, or not all in the journal any more.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.connection() as (connection, queries):
            rows = await connection.fetch(queries["history"], *(key or (None, None)), since.snapshot, MAX_HISTORY + 1)
        pruned_to = rows[0]["pruned_to"]
        if len(rows) > MAX_HISTORY or (pruned_to is not None and not since.saw(pruned_to)):
            return None
        return [_transition(row[1:]) for row in rows if row["id"] is not None]

    async def tagged(self, tags: Collection[str]) -> frozenset[str]:
        """Return the DAGs that bear one of some tags. Errors as for `history`."""
        async with self.connection() as (connection, queries):
            return frozenset(row["dag_id"] for row in await connection.fetch(queries["tagged"], list(tags)))

    async def lacks(self, cursor: Cursor) -> bool:
        """Tell whether the journal has another history than the one that a cursor comes from. Errors as for `history`.

        A failover to a server that was behind, or a crash with `synchronous_commit = off`, forgets transactions, and
        gives their numbers to others.
        """
        if cursor.row is None:
            return False
        async with self.connection() as (connection, queries):
            found = await connection.fetchval(queries["lacks"], [cursor.row.seq], [cursor.xmax - 1], [cursor.row.time])
        return bool(found)

    async def values(self, key: RunKey, task_ids: Collection[str]) -> Values:
        """Read what tasks of a run have returned. Errors as for `run_state`, without `RunNotFound`."""
        async with self.connection() as (connection, queries):
            rows = await connection.fetch(queries["return_values"], *key, list(task_ids), self._max_result_bytes)
        return _values(rows)

    async def final_values(self, key: RunKey, task_ids: Collection[str] | None) -> Values:
        """Read what tasks of a run have returned; where none are named, those that Airflow marked as its result.

        Errors as for `values`.
        """
        named = None if task_ids is None else list(task_ids)
        async with self.connection() as (connection, queries):
            return _values(await connection.fetch(queries["final_values"], *key, named, self._max_result_bytes))

    async def prune(
        self,
        age: float | None,
        at_most: int,
        size: int | None = None,
        *,
        settled: str | None = None,
        onward: bool = False,
    ) -> int:
        """Delete the oldest rows of the journal, and return how many.

        Args:
            age: Those older than so many seconds; `None` sets no bound.
            at_most: No more than so many.
            size: Those beyond so many bytes, with their part of the index; `None` sets no bound.
            settled: Only those that this snapshot has seen; `None` sets no bound.
            onward: From where the last call has ended, instead of from the first row on.

        Raises:
            JournalForbidden: The role may not.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.connection() as (connection, queries):
            return int(await connection.fetchval(queries["prune"], age, at_most, size, settled, onward))

    async def snapshot(self) -> str:
        """Return what can be seen just now. Errors as for `prune`."""
        async with self.connection() as (connection, queries):
            return str(await connection.fetchval(queries["snapshot"]))

    async def measures(self) -> Measures:
        """Measure the journal. Errors as for `prune`."""
        async with self.connection() as (connection, queries):
            row = await connection.fetchrow(queries["measures"])
        if row is None:
            raise JournalMissing("The journal is not installed; run `stream-server install`")
        return Measures(*row)

    async def refresh(self) -> None:
        """Make all connections anew as they are needed: the server may be another one."""
        self._queries = None
        if self._pool is not None:
            await self._pool.expire_connections()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[Connection, dict[str, str]]]:
        """Lend a connection of the pool, with the queries for the Airflow in this database."""
        with errors_mapped():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    **connection_arguments(self._url),
                    min_size=0,
                    max_size=self._pool_size,
                    connect=cast("Any", open_session),
                    connection_class=Session,
                )
            async with self._pool.acquire() as connection:
                if self._queries is None:
                    self._queries = await queries_for(connection)
                yield connection, self._queries

    async def _marked(
        self, connection: Connection, queries: dict[str, str], dag_id: str, version: UUID
    ) -> frozenset[str]:
        """Return which tasks of a DAG version bear Airflow's own mark, as far as an earlier run has shown it."""
        if version not in self._marks:
            rows = await connection.fetch(queries["marked_before"], dag_id, version)
            if not rows:
                return frozenset()
            self._marks[version] = frozenset(row["task_id"] for row in rows)
            if len(self._marks) > MAX_GRAPHS:
                self._marks.popitem(last=False)
        return self._marks[version]

    async def _graph(self, connection: Connection, queries: dict[str, str], version: UUID) -> Graph | None:
        """Return the structure of a DAG version. It does not change once a run refers to it."""
        if version in self._graphs:
            self._graphs.move_to_end(version)
            return self._graphs[version]
        row = await connection.fetchrow(queries["serialized_dag"], version)
        if row is None:
            return None
        try:
            graph = Graph.parse(row["data"], row["data_compressed"])
        except msgspec.MsgspecError:
            return None
        self._graphs[version] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


def _as_far_as_written(seen: Cursor, row: asyncpg.Record) -> Cursor:
    """Return the cursor that claims nothing of transactions younger than the newest row of the journal."""
    newest, pruned_to = row["newest"] or 1, row["pruned_to"] or 1
    if newest < pruned_to or row["newest"] is None:
        return seen.up_to(pruned_to)
    return seen.up_to(newest, Row.of(row["newest_id"], row["newest_at"]))


def _transition(columns: tuple[Any, ...]) -> Transition:
    # The columns of the journal stand in the order of the fields, in all queries.
    seq, txid, at, kind, *rest = columns
    return Transition(seq, txid, at, Kind(kind), *rest)


def _values(rows: Sequence[asyncpg.Record]) -> Values:
    return {(row["task_id"], row["map_index"]): Value(row["bytes"], row["json"]) for row in rows}


def _run_state(key: RunKey, rows: Sequence[asyncpg.Record]) -> RunState:
    first = rows[0]
    run = RunState(
        key,
        RunInfo(
            state=first["run_state"],
            queued_at=first["run_queued_at"],
            start_date=first["run_start_date"],
            end_date=first["run_end_date"],
            clear_number=first["clear_number"] or 0,
        ),
    )
    for row in rows:
        if row["task_id"] is None:
            continue
        instance = Instance(
            state=row["state"],
            try_number=row["try_number"] or 0,
            start_date=row["start_date"],
            end_date=row["end_date"],
            pushed=Origin() if row["pushed"] else None,
        )
        run.add(row["task_id"], row["map_index"], instance)
        if row["dag_result"]:
            run.native_results.add(row["task_id"])
    return run
