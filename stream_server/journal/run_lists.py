"""Reading lists for the pages, from the connections of those who join."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.journal.reader import limit_to_newest_row
from stream_server.journal.replica_snapshot import fetch_with_snapshot
from stream_server.journal.run_store import RunStore
from stream_server.protocol.bodies import DagItem, RunItem
from stream_server.protocol.cursor import JournalPosition


class RecentRuns(NamedTuple):
    """Runs, the youngest first, and from where on the journal tells what has happened since."""

    runs: list[RunItem]
    position: JournalPosition | None
    """`None` where the journal is not whole."""

    next_before: int | None
    """What to ask with for those that are older; `None` where there are none."""


async def read_recent_runs(source: RunStore, dag_id: str | None, limit: int, before: int | None = None) -> RecentRuns:
    """Read the youngest runs of a DAG, or of all. Errors as for `Runs.history`.

    Args:
        source: Where runs are read from.
        dag_id: The DAG; `None` for all.
        limit: How many at most.
        before: Only those that were created before this one.
    """
    async with source.acquire_connection() as (connection, queries):
        rows, seen = await fetch_with_snapshot(connection, queries, "recent_runs", dag_id, limit, before)
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
    cursor = limit_to_newest_row(seen, rows[0]) if rows else None
    return RecentRuns(runs, cursor, found[-1]["id"] if len(found) == limit else None)


async def read_tagged_dags(source: RunStore, tag: str) -> list[DagItem]:
    """Read the DAGs that bear a tag. Errors as for `Runs.history`."""
    async with source.acquire_connection() as (connection, queries):
        rows = await connection.fetch(queries["dags_to_choose"], tag)
    return [DagItem(dag_id=row["dag_id"], description=row["description"], is_paused=row["is_paused"]) for row in rows]
