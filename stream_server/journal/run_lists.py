"""Queries of the lists of runs and DAGs."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.journal.reader import limit_to_newest_row
from stream_server.journal.replica_snapshot import fetch_with_snapshot
from stream_server.journal.run_store import RunStore
from stream_server.protocol.bodies import DagItem, RunItem
from stream_server.protocol.cursor import JournalPosition


class RecentRuns(NamedTuple):
    """Runs, the youngest first, and the position from which the journal continues."""

    runs: list[RunItem]
    position: JournalPosition | None
    """`None` if the journal is incomplete."""

    next_before: int | None
    """The argument `before` for the next page; `None` if there is none."""


async def read_recent_runs(
    run_store: RunStore, dag_id: str | None, limit: int, before: int | None = None
) -> RecentRuns:
    """Return the youngest runs of a DAG, or of all DAGs. Errors as for `RunStore.read_history`.

    Args:
        run_store: The database.
        dag_id: The DAG; `None` for all.
        limit: Maximum number of runs.
        before: Only runs that were created before this one (`dag_run.id`).
    """
    async with run_store.acquire_connection() as (connection, queries):
        rows, snapshot = await fetch_with_snapshot(connection, queries, "recent_runs", dag_id, limit, before)
    found = [row for row in rows if row["id"] is not None]
    runs = [
        RunItem(
            dag_id=row["dag_id"],
            run_id=row["run_id"],
            state=row["state"],
            run_type=row["run_type"],
            queued_at=row["queued_at"],
            start_date=row["start_date"],
            end_date=row["end_date"],
        )
        for row in found
    ]
    position = limit_to_newest_row(snapshot, rows[0]) if rows else None
    return RecentRuns(runs, position, found[-1]["id"] if len(found) == limit else None)


async def read_tagged_dags(run_store: RunStore, tag: str) -> list[DagItem]:
    """Return the DAGs with a tag. Errors as for `RunStore.read_history`."""
    async with run_store.acquire_connection() as (connection, queries):
        rows = await connection.fetch(queries["tagged_dags"], tag)
    return [DagItem(dag_id=row["dag_id"], description=row["description"], is_paused=row["is_paused"]) for row in rows]
