"""Reads of Airflow's tables and of the journal for new subscriptions, on a small pool of connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import asyncpg

from stream_server.domain.outcome import ReturnValues, WatchOptions, evaluate
from stream_server.domain.run_state import MAX_OUTPUT_BYTES, RETRACTING_STATES, RunKey, RunState
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.domain.transition_frames import is_output
from stream_server.errors import JournalMissing, JournalUnreachable, RunNotFound
from stream_server.journal.changed_tables import repeat_for_new_tables
from stream_server.journal.connection import (
    CLOSE_TIMEOUT,
    AnyConnection,
    DatabaseConnection,
    build_connect_arguments,
    get_server_info,
    map_postgres_errors,
    open_connection,
)
from stream_server.journal.dag_versions import GraphCache, find_version, read_earlier_marks
from stream_server.journal.human_input import add_requests, fetch_requests
from stream_server.journal.reader import SkippedRow, decode_rows, limit_to_newest_row, log_skipped_rows
from stream_server.journal.replica_snapshot import fetch_with_snapshot
from stream_server.journal.row_slices import call_for_rows, fetch_in_slices
from stream_server.journal.run_rows import apply_output, build_run_state, build_values, build_waiting
from stream_server.journal.status import load_queries_for
from stream_server.journal.undecodable_rows import LoggedCauses
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import Waiting

log = logging.getLogger(__name__)

MAX_HISTORY = 5000
"""Maximum number of transitions that are replayed to a resuming client. Beyond that, it gets a snapshot."""

MAX_HISTORY_SCAN = 50_000
"""Maximum number of rows of all runs after the position of a resuming client. Beyond that, it gets a snapshot: the
client chooses the position, and the read must not take longer the longer the journal is."""

MAX_HISTORY_BYTES = 8 * 1024 * 1024
"""Maximum size of the output that is replayed."""

MAX_OUTPUT_ROWS = 5000
"""Maximum number of output rows that are read for a snapshot: the last ones of the run."""

OUTPUT_SCHEMA_VERSION = 3
"""First schema version with the table `output`."""

POOL_TIMEOUT_SECONDS = 20.0
"""How long to wait for a connection of the pool, including the time to open one."""

MAX_QUEUED = 10_000
"""Maximum number of reads that wait for a connection. Enough for all clients that come back after a restart."""

RELOAD_SECONDS = 60.0
"""How often an Airflow without human input (3.0) is checked for an upgrade."""

REPLICA_LAG_SECONDS, REPLICA_PAUSE_SECONDS = 1.0, 0.05
"""Timeout and interval for a run that a read replica does not have yet: it may have been triggered a moment ago."""


class GaugeValues(NamedTuple):
    """Sizes of the journal, and usage of the notification queue."""

    live_rows: int
    """An estimate, from PostgreSQL's statistics."""

    dead_rows: int
    """Deleted rows that vacuum has not removed yet; also an estimate."""

    table_bytes: int
    index_bytes: int
    dropped_writes: int
    """Number of writes that the triggers dropped since the installation."""

    notify_queue_usage: float
    """Used share of PostgreSQL's notification queue."""


class RunStore:
    """Reads run states, histories and values. Shared by all subscriptions of a process."""

    def __init__(
        self, url: str, *, pool_size: int, max_result_bytes: int, max_output_bytes: int = MAX_OUTPUT_BYTES
    ) -> None:
        self._url = url
        self._pool_size = pool_size
        self._max_result_bytes = max_result_bytes
        self._max_output_bytes = max_output_bytes
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._queued = 0
        self._queries: dict[str, str] | None = None
        self._loaded_at = 0.0
        self._graphs = GraphCache()
        self._logged_causes = LoggedCauses()

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT)
        except asyncio.TimeoutError:
            self._pool.terminate()

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        """Return the state of a run, and the position from which the journal continues.

        Raises:
            RunNotFound: Airflow has no such run.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        deadline = time.monotonic() + REPLICA_LAG_SECONDS
        while isinstance(found := await self._try_read_run(key), bool):
            if not found or time.monotonic() > deadline:
                raise RunNotFound(*key)
            await asyncio.sleep(REPLICA_PAUSE_SECONDS)
        return found

    @repeat_for_new_tables
    async def _try_read_run(self, key: RunKey) -> tuple[RunState, JournalPosition] | bool:
        """Return a run. If it does not exist, return whether it may arrive: this is a read replica."""
        async with self.acquire_connection() as (connection, queries):
            rows, snapshot = await fetch_with_snapshot(connection, queries, "run_snapshot", *key)
            if not rows:
                return get_server_info(connection).is_replica
            run, versions = await call_for_rows(build_run_state, rows, key, self._max_output_bytes)
            if sum(map(len, run.tasks.values())) < len(rows):
                self._log_merged_instances(key, rows)
            position = limit_to_newest_row(snapshot, rows[0])
            if rows[0]["version"] >= OUTPUT_SCHEMA_VERSION:
                await self._load_output(connection, queries, run, position)
            version = await find_version(connection, queries, key, versions)
            if version is not None:
                run.graph = await self._graphs.read(connection, queries, version)
                if run.graph is not None and not run.graph.marked_tasks:
                    run.earlier_marks = await read_earlier_marks(connection, queries, key, version, run.graph.tasks)
        if run.is_large:
            await asyncio.to_thread(_prepare_run_state, run)
        return run, position

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        """Return the transitions of a run, or of all runs, after a position.

        Args:
            key: The run; `None` for all.
            since: The position.
            output: Whether to read the output of tasks.

        Returns:
            `None` if there are more than `MAX_HISTORY`, or of all runs more than `MAX_HISTORY_SCAN`, if some were
            pruned, if the journal has another epoch, or if one can't be decoded.

        Raises:
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.acquire_connection() as (connection, queries):
            dag_id, run_id = key or (None, None)
            arguments = dag_id, run_id, since.snapshot, MAX_HISTORY + 1, since.epoch, MAX_HISTORY_SCAN
            rows = await fetch_in_slices(connection, queries["history"], *arguments)
            version = rows[0]["version"]
            if len(rows) > MAX_HISTORY or not rows[0]["is_complete"]:
                return None
            transitions, skipped = await call_for_rows(_decode_history, rows)
            if skipped:
                log_skipped_rows(skipped, self._logged_causes)
                return None
            transitions = await add_requests(transitions, partial(fetch_requests, connection, queries))
            if key is not None:
                transitions = [one for one in transitions if (one.dag_id, one.run_id) == key]
            if not output or version < OUTPUT_SCHEMA_VERSION:
                return transitions
            if key is not None:
                transitions = await self._flag_prior_output(connection, queries, key, transitions)
            return await self._add_output_bodies(connection, queries, transitions)

    async def read_dag_ids_with_tags(self, tags: Collection[str]) -> frozenset[str]:
        """Return the DAGs that have one of some tags. Errors as for `read_history`."""
        async with self.acquire_connection() as (connection, queries):
            return frozenset(row["dag_id"] for row in await connection.fetch(queries["dag_ids_with_tags"], list(tags)))

    async def is_foreign(self, position: JournalPosition) -> bool:
        """Whether the row of a position is missing from the journal. Errors as for `read_history`.

        Then the journal has another history than the one that the position comes from, after a failover to a server
        that was behind, or a crash with `synchronous_commit = off`.
        """
        if position.row is None:
            return False
        async with self.acquire_connection() as (connection, queries):
            row, txid = position.row, position.xmax - 1
            is_missing = await connection.fetchval(queries["is_any_row_missing"], [row.seq], [txid], [row.written_at])
        return bool(is_missing)

    @repeat_for_new_tables
    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        """Return the return values of tasks of a run. Errors as for `read_run`, without `RunNotFound`."""
        async with self.acquire_connection() as (connection, queries):
            rows = await fetch_in_slices(
                connection, queries["return_values"], *key, list(task_ids), self._max_result_bytes
            )
        return await call_for_rows(build_values, rows)

    @repeat_for_new_tables
    async def read_final_values(self, key: RunKey, task_ids: Collection[str] | None) -> ReturnValues:
        """Return the return values of tasks of a run; with `None`, of the tasks with Airflow's own result mark.

        Errors as for `read_values`.
        """
        named = None if task_ids is None else list(task_ids)
        async with self.acquire_connection() as (connection, queries):
            rows = await fetch_in_slices(connection, queries["final_values"], *key, named, self._max_result_bytes)
        return await call_for_rows(build_values, rows)

    async def read_waiting(self, keys: Sequence[RunKey]) -> dict[RunKey, Waiting]:
        """Return why unfinished runs do not proceed. Errors as for `read_values`."""
        async with self.acquire_connection() as (connection, queries):
            rows = await connection.fetch(queries["waiting_runs"], *map(list, zip(*keys, strict=True)))
        return {RunKey(row["dag_id"], row["run_id"]): build_waiting(row) for row in rows}

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
            age: Delete rows older than this, in seconds; `None` sets no bound.
            at_most: Maximum number of rows.
            size: Delete the oldest rows beyond this size, in bytes with index entries; `None` sets no bound.
            settled: Delete only rows that are visible in this snapshot; `None` sets no bound.
            onward: Whether to start where the last call ended, instead of at the first row.

        Raises:
            JournalForbidden: The role lacks a privilege.
            JournalMissing: The journal is not installed.
            JournalUnreachable: PostgreSQL does not answer.
        """
        async with self.acquire_connection() as (connection, queries):
            return int(await connection.fetchval(queries["prune_journal"], age, at_most, size, settled, onward))

    async def read_snapshot(self) -> str:
        """Return the current snapshot. Errors as for `prune_journal`."""
        async with self.acquire_connection() as (connection, queries):
            return str(await connection.fetchval(queries["current_snapshot"]))

    async def read_gauges(self) -> GaugeValues:
        """Errors as for `prune_journal`."""
        async with self.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["gauges"])
        if row is None:
            raise JournalMissing("The journal is not installed; run `stream-server install`")
        return GaugeValues(*row)

    async def reconnect(self) -> None:
        """Replace all connections when they are used next: the server may be another one."""
        self.forget_queries()
        if self._pool is not None:
            await self._pool.expire_connections()

    @property
    def has_queries(self) -> bool:
        """Whether queries for the columns of Airflow's tables are cached."""
        return self._queries is not None

    def forget_queries(self) -> None:
        """Have the next read ask for the columns of Airflow's tables."""
        self._queries = None

    @asynccontextmanager
    async def acquire_connection(self) -> AsyncIterator[tuple[AnyConnection, dict[str, str]]]:
        """Lend a connection of the pool, with the blocks of `queries.sql`.

        Raises:
            JournalUnreachable: None becomes free in `POOL_TIMEOUT_SECONDS`, `MAX_QUEUED` others wait, or as for
                `read_history`.
        """
        if self._queued >= MAX_QUEUED:
            raise JournalUnreachable("PostgreSQL answers too slowly: too many reads wait for a connection")
        with map_postgres_errors():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    **build_connect_arguments(self._url),
                    min_size=0,
                    max_size=self._pool_size,
                    connect=cast("Any", open_connection),
                    connection_class=DatabaseConnection,
                )
            self._queued += 1
            try:
                connection = await self._pool.acquire(timeout=POOL_TIMEOUT_SECONDS)
            finally:
                self._queued -= 1
            try:
                if self._queries is None or self._may_lack_requests():
                    self._queries, self._loaded_at = await load_queries_for(connection), time.monotonic()
                yield connection, self._queries
            except asyncpg.UndefinedTableError:
                # Airflow was downgraded, and the next reads do without the table.
                self._queries = None
                raise
            finally:
                await self._pool.release(connection)

    def _may_lack_requests(self) -> bool:
        """Whether an upgrade may have added the table for human input since the queries were loaded."""
        is_old = time.monotonic() - self._loaded_at > RELOAD_SECONDS
        return is_old and self._queries is not None and "human_input" not in self._queries

    async def read_output_bodies(self, rows: Collection[int]) -> dict[int, str | None]:
        """Return the output of journal rows, by row. Errors as for `read_history`."""
        async with self.acquire_connection() as (connection, queries):
            found = await connection.fetch(queries["output_bodies"], list(rows), None)
        return {row["id"]: row["body"] for row in found}

    def _log_merged_instances(self, key: RunKey, rows: Sequence[asyncpg.Record]) -> None:
        """Log that a run has several rows for one task instance. Airflow 3.0 to 3.4 has a constraint against it."""
        counts = Counter((row["task_id"], row["map_index"], row["iteration"]) for row in rows)
        task_id, map_index, iteration = max(counts, key=lambda instance: counts[instance])
        if counts[task_id, map_index, iteration] > 1 and self._logged_causes.add_if_new(f"{key.dag_id}.{task_id}"):
            log.warning(
                "Run %s of DAG %s has %d rows of task %s with map_index %s, of which streams have the last one: the"
                " tables are those of a newer Airflow; upgrade stream-server",
                *(key.run_id, key.dag_id, counts[task_id, map_index, iteration], task_id, map_index),
                extra={"action": "task_instances_merged"},
            )

    async def _load_output(
        self, connection: AnyConnection, queries: dict[str, str], run: RunState, position: JournalPosition
    ) -> None:
        """Apply the output of its tasks to a run, as far as it is visible in the snapshot of the run."""
        rows = await fetch_in_slices(
            connection, queries["run_output"], *run.key, MAX_OUTPUT_ROWS, self._max_output_bytes
        )
        await call_for_rows(apply_output, rows, run, position)

    async def _flag_prior_output(
        self, connection: AnyConnection, queries: dict[str, str], key: RunKey, transitions: list[Transition]
    ) -> list[Transition]:
        """Return transitions of a run, with `had_output` set for those that may retract output."""
        candidates = [one for one in transitions if one.kind is TransitionKind.TASK and one.state in RETRACTING_STATES]
        if not candidates:
            return transitions
        columns = zip(*((one.seq, one.task_id, one.map_index, one.iteration) for one in candidates), strict=True)
        rows = await connection.fetch(queries["rows_after_output"], *key, *map(list, columns))
        found = {row["id"] for row in rows}
        return [one._replace(had_output=True) if one.seq in found else one for one in transitions]

    async def _add_output_bodies(
        self, connection: AnyConnection, queries: dict[str, str], transitions: list[Transition]
    ) -> list[Transition] | None:
        """Return transitions with their output, or `None` if it exceeds `MAX_HISTORY_BYTES`."""
        output_ids = [one.seq for one in transitions if is_output(one)]
        if not output_ids:
            return transitions
        rows = await connection.fetch(queries["output_bodies"], output_ids, MAX_HISTORY_BYTES)
        if sum(row["bytes"] or 0 for row in rows) > MAX_HISTORY_BYTES:
            return None
        bodies = {row["id"]: row["body"] for row in rows}
        return [one._replace(body=bodies.get(one.seq)) for one in transitions]


def _decode_history(rows: Sequence[asyncpg.Record]) -> tuple[list[Transition], list[SkippedRow]]:
    return decode_rows(row[2:] for row in rows if row["id"] is not None)


def _prepare_run_state(run: RunState) -> None:
    """Compute what a large run keeps up to date from then on, and its outcome for most clients."""
    run.predict()
    run.snapshot(())
    evaluate(run, WatchOptions())
