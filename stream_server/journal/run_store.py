"""Reading Airflow's tables, and what joiners need of the journal, from a small pool of connections."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg
import msgspec

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import ReturnValue, ReturnValues
from stream_server.domain.run_state import (
    MAX_OUTPUT_BYTES,
    RETRACTING_STATES,
    RunKey,
    RunState,
    SourceRow,
    TaskInstance,
)
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import is_output
from stream_server.errors import JournalMissing, RunNotFound
from stream_server.journal.connection import (
    CLOSE_TIMEOUT,
    AnyConnection,
    DatabaseConnection,
    build_connect_arguments,
    get_server_info,
    map_postgres_errors,
    open_connection,
)
from stream_server.journal.installer import load_queries_for
from stream_server.journal.reader import decode_rows, limit_to_newest_row, log_skipped
from stream_server.journal.replica_snapshot import fetch_with_snapshot
from stream_server.journal.undecodable_rows import Causes
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import RunInfo

MAX_HISTORY = 5000
"""Transitions that are told one by one to who comes later; beyond that, a snapshot says more."""

MAX_HISTORY_BYTES = 8 * 1024 * 1024
"""The same for what tasks have said in them."""

MAX_OUTPUT_ROWS = 5000
"""How much of what the tasks of a run have said is read for who joins: so many times at most, the last ones."""

OUTPUT_SCHEMA_VERSION = 3
"""Version of the journal that has what tasks say."""

REPLICA_LAG_SECONDS, REPLICA_PAUSE_SECONDS = 1.0, 0.05
"""For how long, and how often, to look for a run that a read replica does not know: it may have been triggered just
now."""

MAX_GRAPHS = 256
"""DAG versions whose structure is kept in memory."""

MAX_EARLIER_RUNS = 20
"""How many of the last ended runs of a DAG are searched for Airflow 3.3's own result marks."""


class GaugeValues(NamedTuple):
    """How large the journal is, and what else only the database knows."""

    live_rows: int
    """As PostgreSQL's statistics estimate them."""

    dead_rows: int
    """Those deleted that vacuum has not removed yet; an estimate, too."""

    table_bytes: int
    index_bytes: int
    dropped_writes: int
    """How often the triggers could not write something down, since the journal was installed."""

    notify_queue_usage: float
    """Share of PostgreSQL's queue of notifications that is full."""


class RunStore:
    """What joiners need to know of runs, from a small pool of connections."""

    def __init__(
        self, url: str, *, pool_size: int, max_result_bytes: int, max_output_bytes: int = MAX_OUTPUT_BYTES
    ) -> None:
        self._url = url
        self._pool_size = pool_size
        self._max_result_bytes = max_result_bytes
        self._max_output_bytes = max_output_bytes
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._queries: dict[str, str] | None = None
        self._graphs: OrderedDict[UUID, Graph] = OrderedDict()
        self._causes = Causes()

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT)
        except asyncio.TimeoutError:
            self._pool.terminate()

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        """Read a run, and the cursor that goes on from there.

        Raises:
            RunNotFound: Airflow knows no such run.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        deadline = time.monotonic() + REPLICA_LAG_SECONDS
        while isinstance(found := await self._try_read_run(key), bool):
            if not found or time.monotonic() > deadline:
                raise RunNotFound(*key)
            await asyncio.sleep(REPLICA_PAUSE_SECONDS)
        return found

    async def _try_read_run(self, key: RunKey) -> tuple[RunState, JournalPosition] | bool:
        """Read a run; where it is not there, tell whether it may be on its way, since this is a read replica."""
        async with self.acquire_connection() as (connection, queries):
            rows, seen = await fetch_with_snapshot(connection, queries, "run_snapshot", *key)
            if not rows:
                return get_server_info(connection).is_replica
            run = _build_run_state(key, rows, self._max_output_bytes)
            seen = limit_to_newest_row(seen, rows[0])
            if rows[0]["version"] >= OUTPUT_SCHEMA_VERSION:
                await self._load_output(connection, queries, run, seen)
            versions = Counter(row["dag_version_id"] for row in rows if row["dag_version_id"])
            if versions:
                version = versions.most_common(1)[0][0]
                run.graph = await self._read_graph(connection, queries, version)
                if run.graph is not None and not run.graph.marked_tasks:
                    run.earlier_marks = await _earlier_marks(connection, queries, key, version, run.graph.tasks)
        return run, seen

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        """Read the transitions of a run, or of all runs, that a cursor has not seen.

        Args:
            key: The run; `None` for all.
            since: The cursor.
            output: Whether what tasks have said is wanted too.

        Returns:
            `None` where they are too many to be worth telling one by one, or not all in the journal any more, or where
            one of them cannot be decoded. Rows of kind `input` are left out.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.acquire_connection() as (connection, queries):
            rows = await connection.fetch(queries["history"], *(key or (None, None)), since.snapshot, MAX_HISTORY + 1)
            pruned_to, version = rows[0]["pruned_to"], rows[0]["version"]
            if len(rows) > MAX_HISTORY or (pruned_to is not None and not since.is_visible(pruned_to)):
                return None
            transitions, skipped = decode_rows(row[2:] for row in rows if row["id"] is not None)
            if skipped:
                log_skipped(skipped, self._causes)
                return None
            if not output or version < OUTPUT_SCHEMA_VERSION:
                return transitions
            if key is not None:
                transitions = await self._flag_prior_output(connection, queries, key, transitions)
            return await self._add_output_bodies(connection, queries, transitions)

    async def read_dag_ids_with_tags(self, tags: Collection[str]) -> frozenset[str]:
        """Return the DAGs that bear one of some tags. Errors as for `history`."""
        async with self.acquire_connection() as (connection, queries):
            return frozenset(row["dag_id"] for row in await connection.fetch(queries["tagged"], list(tags)))

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        """Tell whether the journal has another history than the one that a cursor comes from. Errors as for `history`.

        A failover to a server that was behind, or a crash with `synchronous_commit = off`, forgets transactions, and
        gives their numbers to others.
        """
        if cursor.row is None:
            return False
        async with self.acquire_connection() as (connection, queries):
            found = await connection.fetchval(
                queries["lacks"], [cursor.row.seq], [cursor.xmax - 1], [cursor.row.written_at]
            )
        return bool(found)

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        """Read what tasks of a run have returned. Errors as for `run_state`, without `RunNotFound`."""
        async with self.acquire_connection() as (connection, queries):
            rows = await connection.fetch(queries["return_values"], *key, list(task_ids), self._max_result_bytes)
        return _build_values(rows)

    async def read_final_values(self, key: RunKey, task_ids: Collection[str] | None) -> ReturnValues:
        """Read what tasks of a run have returned; where none are named, those that Airflow marked as its result.

        Errors as for `values`.
        """
        named = None if task_ids is None else list(task_ids)
        async with self.acquire_connection() as (connection, queries):
            return _build_values(await connection.fetch(queries["final_values"], *key, named, self._max_result_bytes))

    async def prune_journal(
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
        async with self.acquire_connection() as (connection, queries):
            return int(await connection.fetchval(queries["prune"], age, at_most, size, settled, onward))

    async def read_snapshot(self) -> str:
        """Return what can be seen just now. Errors as for `prune`."""
        async with self.acquire_connection() as (connection, queries):
            return str(await connection.fetchval(queries["snapshot"]))

    async def read_gauges(self) -> GaugeValues:
        """Measure the journal. Errors as for `prune`."""
        async with self.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["measures"])
        if row is None:
            raise JournalMissing("The journal is not installed; run `stream-server install`")
        return GaugeValues(*row)

    async def reconnect(self) -> None:
        """Make all connections anew as they are needed: the server may be another one."""
        self._queries = None
        if self._pool is not None:
            await self._pool.expire_connections()

    @asynccontextmanager
    async def acquire_connection(self) -> AsyncIterator[tuple[AnyConnection, dict[str, str]]]:
        """Lend a connection of the pool, with the queries for the Airflow in this database."""
        with map_postgres_errors():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    **build_connect_arguments(self._url),
                    min_size=0,
                    max_size=self._pool_size,
                    connect=cast("Any", open_connection),
                    connection_class=DatabaseConnection,
                )
            async with self._pool.acquire() as connection:
                if self._queries is None:
                    self._queries = await load_queries_for(connection)
                yield connection, self._queries

    async def _load_output(
        self, connection: AnyConnection, queries: dict[str, str], run: RunState, seen: JournalPosition
    ) -> None:
        """Let a run know what its tasks have said, as far as it was seen."""
        rows = await connection.fetch(queries["output"], *run.key, MAX_OUTPUT_ROWS, self._max_output_bytes)
        for seq, txid, at, kind, dag_id, run_id, task_id, map_index, body in rows:
            if seen.is_visible(txid):
                said = Transition(seq, txid, at, TransitionKind(kind), dag_id, run_id, task_id, map_index)
                run.apply(said._replace(xcom_key=OUTPUT_KEY, body=body))
        run.take_retraction()

    async def _flag_prior_output(
        self, connection: AnyConnection, queries: dict[str, str], key: RunKey, transitions: list[Transition]
    ) -> list[Transition]:
        """Return transitions of a run with the note which of them may take back what a task had said."""
        asked = [one for one in transitions if one.kind is TransitionKind.TASK and one.state in RETRACTING_STATES]
        if not asked:
            return transitions
        columns = zip(*((one.seq, one.task_id, one.map_index) for one in asked), strict=True)
        rows = await connection.fetch(queries["had_spoken"], *key, *map(list, columns))
        found = {row["id"] for row in rows}
        return [one._replace(had_spoken=True) if one.seq in found else one for one in transitions]

    async def _add_output_bodies(
        self, connection: AnyConnection, queries: dict[str, str], transitions: list[Transition]
    ) -> list[Transition] | None:
        """Return transitions with what tasks have said in them, or `None` where that is too much."""
        asked = [one.seq for one in transitions if is_output(one)]
        if not asked:
            return transitions
        rows = await connection.fetch(queries["bodies"], asked, MAX_HISTORY_BYTES)
        if sum(row["bytes"] or 0 for row in rows) > MAX_HISTORY_BYTES:
            return None
        bodies = {row["id"]: row["body"] for row in rows}
        return [one._replace(body=bodies.get(one.seq)) for one in transitions]

    async def _read_graph(self, connection: AnyConnection, queries: dict[str, str], version: UUID) -> Graph | None:
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


async def _earlier_marks(
    connection: AnyConnection, queries: dict[str, str], key: RunKey, version: UUID, task_ids: Collection[str]
) -> dict[str, bool] | None:
    """Return which tasks of a DAG version bore Airflow 3.3's own result mark in earlier runs that have ended.

    It is not cached: the author can move the mark without a new version, and a run can be cleared.

    Returns:
        By task, as `RunState.earlier_marks`; `None` if there is no such run, or an older Airflow ran the last of them.
    """
    earlier = [row["id"] for row in await connection.fetch(queries["ended_runs"], *key, version, MAX_EARLIER_RUNS)]
    if not earlier:
        return None
    rows = await connection.fetch(queries["shown_marks"], key.dag_id, version, earlier[:1], list(task_ids))
    if any(row["marked"] is None for row in rows):
        return None
    # Older runs show what the last one does not: of tasks that it skipped and, if it shows marks at all, of tasks that
    # returned nothing. A DAG without marks costs no more than its last run.
    has_marks = any(row["marked"] for row in rows)
    shown = {row["task_id"] for row in rows if row["has_value"] or not has_marks}
    unknown = [task_id for task_id in task_ids if task_id not in shown]
    if not earlier[1:] or not unknown:
        return {row["task_id"]: row["marked"] for row in rows}
    older = await connection.fetch(queries["shown_marks"], key.dag_id, version, earlier[1:], unknown)
    rows += [row for row in older if row["marked"] is not None]
    rows.sort(key=lambda row: row["has_value"])
    return {row["task_id"]: row["marked"] for row in rows}


def _build_values(rows: Sequence[asyncpg.Record]) -> ReturnValues:
    return {(row["task_id"], row["map_index"]): ReturnValue(row["bytes"], row["json"]) for row in rows}


def _build_run_state(key: RunKey, rows: Sequence[asyncpg.Record], output_bytes: int) -> RunState:
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
        output_bytes=output_bytes,
    )
    for row in rows:
        if row["task_id"] is None:
            continue
        instance = TaskInstance(
            state=row["state"],
            try_number=row["try_number"] or 0,
            start_date=row["start_date"],
            end_date=row["end_date"],
            pushed=SourceRow() if row["pushed"] else None,
            # A value of an earlier try is about to be deleted.
            mark=row["dag_result"] if row["pushed"] or row["state"] != "running" else None,
        )
        run.add_instance(row["task_id"], row["map_index"], instance)
    return run
