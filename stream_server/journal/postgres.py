"""Reading the journal and Airflow's tables.

`Reader` is the tail's own connection. `Runs` answers for joiners, from a small pool.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from stream_server.cursor import Cursor
from stream_server.errors import RunNotFound
from stream_server.frames import RunInfo
from stream_server.graph import Graph
from stream_server.journal.connection import (
    GOODBYE_TIMEOUT,
    Connection,
    connect,
    connection_arguments,
    disconnect,
    errors_mapped,
)
from stream_server.journal.install import queries_for, read_status
from stream_server.outcome import Value, Values
from stream_server.run_state import Instance, Origin, RunKey, RunState
from stream_server.transition import Kind, Transition

READER_SETTINGS = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off"
"""One plan serves every cursor: it need not be made anew, or compiled, for each read. It must use the index also if it
was made while the journal was small."""

PUT_BACK_LOCK_TIMEOUT = "500ms"
"""How long putting back triggers may wait for a lock, and make Airflow wait behind it."""

MAX_GRAPHS = 256
"""DAG versions whose structure is kept in memory."""


class Standing(NamedTuple):
    """Where the journal stands."""

    cursor: Cursor
    """Of a reader that wants only what comes from now on."""

    pruned_to: int | None
    """The youngest transaction of which rows were deleted."""


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


class Reader:
    """Reads what a cursor has not seen, on a connection of its own."""

    def __init__(self, connection: Connection, queries: dict[str, str]) -> None:
        self._connection = connection
        self._queries = queries

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
            with errors_mapped():
                await connection.execute(READER_SETTINGS)
            yield cls(connection, await queries_for(connection))
        finally:
            await disconnect(connection)

    async def now(self) -> Standing:
        """Return where the journal stands."""
        with errors_mapped():
            row = await self._connection.fetchrow(self._queries["journal_now"])
        assert row is not None, "queries_for has found this row"
        cursor = Cursor.from_snapshot(row["epoch"], row["snapshot"]).up_to(row["newest"] or 1)
        return Standing(cursor, row["pruned_to"])

    async def after(self, cursor: Cursor) -> Batch:
        """Return what a cursor has not seen."""
        with errors_mapped():
            rows = await self._connection.fetch(self._queries["journal_after"], cursor.snapshot)
        transitions = [_transition(row) for row in rows if row["id"] is not None]
        newest = max((one.txid for one in transitions), default=0)
        seen = Cursor.from_snapshot(cursor.epoch, rows[0]["snapshot"])
        told = seen.up_to(max(newest, cursor.xmax - 1))
        return Batch(transitions, told, seen, rows[0]["losses"], rows[0]["read_at"])

    async def put_back(self) -> int:
        """Put back the triggers that are missing, and return how many were.

        None is, where one of Airflow's tables could not be locked in time: better later than in Airflow's way.

        Raises:
            JournalForbidden: The role may not.
            JournalUnreachable: PostgreSQL does not answer.
        """
        with errors_mapped(), suppress(asyncpg.LockNotAvailableError):
            async with self._connection.transaction():
                await self._connection.execute(f"SET LOCAL lock_timeout = '{PUT_BACK_LOCK_TIMEOUT}'")
                return int(await self._connection.fetchval(self._queries["put_back"]))
        return 0

    async def problems(self) -> list[str]:
        """Tell what is wrong with the triggers, in words; empty if all is well."""
        return (await read_status(self._connection)).problems


class Runs:
    """What joiners need to know of runs, from a small pool of connections."""

    def __init__(self, url: str, *, pool_size: int, max_result_bytes: int) -> None:
        self._url = url
        self._pool_size = pool_size
        self._max_result_bytes = max_result_bytes
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._queries: dict[str, str] | None = None
        self._graphs: OrderedDict[UUID, Graph] = OrderedDict()

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
        async with self._connection() as (connection, queries):
            rows = await connection.fetch(queries["run_snapshot"], *key)
            if not rows:
                raise RunNotFound(*key)
            run = _run_state(key, rows)
            versions = Counter(row["dag_version_id"] for row in rows if row["dag_version_id"])
            if versions:
                run.graph = await self._graph(connection, queries, versions.most_common(1)[0][0])
        return run, Cursor.from_snapshot(rows[0]["epoch"], rows[0]["snapshot"]).up_to(rows[0]["newest"] or 1)

    async def values(self, key: RunKey, task_ids: Collection[str]) -> Values:
        """Read what tasks of a run have returned. Errors as for `run_state`, without `RunNotFound`."""
        async with self._connection() as (connection, queries):
            rows = await connection.fetch(queries["return_values"], *key, list(task_ids), self._max_result_bytes)
        return {(row["task_id"], row["map_index"]): Value(row["bytes"], row["json"]) for row in rows}

    async def prune(self, age: float, at_most: int) -> int:
        """Delete rows of the journal older than `age` seconds, `at_most` so many, and return how many.

        Raises:
            JournalForbidden: The role may not.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self._connection() as (connection, queries):
            return int(await connection.fetchval(queries["prune"], age, at_most))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Connection, dict[str, str]]]:
        with errors_mapped():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    **connection_arguments(self._url), min_size=0, max_size=self._pool_size
                )
            async with self._pool.acquire() as connection:
                if self._queries is None:
                    self._queries = await queries_for(connection)
                yield connection, self._queries

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


def _transition(row: asyncpg.Record) -> Transition:
    # The columns of journal_after stand in the order of the fields, behind what tells of the whole batch.
    _, _, _, seq, txid, at, kind, *rest = row
    return Transition(seq, txid, at, Kind(kind), *rest)


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
