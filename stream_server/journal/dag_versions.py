"""The DAG version of a run: its structure, and Airflow 3.3's own result marks in its earlier runs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import cast
from uuid import UUID

import msgspec
from cachetools import LRUCache

from stream_server.domain.graph import Graph
from stream_server.domain.prediction_plan import plan_of
from stream_server.domain.run_state import RunKey
from stream_server.journal.connection import AnyConnection

MAX_GRAPHS = 256
"""Maximum number of DAG versions whose structure is cached."""

MAX_EARLIER_RUNS = 20
"""How many of the last ended runs of a DAG are searched for Airflow 3.3's own result marks."""


class GraphCache:
    """The structures of DAG versions, by version and hash.

    Airflow changes a version in place as long as it has no task instances (`SerializedDagModel.write_dag`).
    """

    def __init__(self) -> None:
        self._graphs: LRUCache[UUID, tuple[str, Graph]] = LRUCache(MAX_GRAPHS)

    async def read(self, connection: AnyConnection, queries: dict[str, str], version: UUID) -> Graph | None:
        """Return the structure of a version; `None` if Airflow has not stored it, or it cannot be decoded."""
        cached_hash, graph = self._graphs.get(version, (None, None))
        rows = await connection.fetch(queries["serialized_dag"], version, cached_hash)
        if not rows:
            return None
        dag_hash: str = rows[0]["dag_hash"]
        if graph is None or dag_hash != cached_hash:
            pieces = [row["piece"] for row in rows if row["piece"] is not None]
            try:
                # The event loop goes on meanwhile: this takes 0.5 s for a DAG of 20 MiB.
                graph = await asyncio.to_thread(_prepare_graph, pieces, rows[0]["data_compressed"])
            except msgspec.MsgspecError:
                return None
            self._graphs[version] = dag_hash, graph
        return graph


def _prepare_graph(pieces: Sequence[bytes], compressed: bytes | None) -> Graph:
    graph = Graph.parse(b"".join(pieces), compressed)
    graph.prepare()
    plan_of(graph)
    return graph


async def find_version(
    connection: AnyConnection, queries: dict[str, str], key: RunKey, versions: Collection[UUID]
) -> UUID | None:
    """Return the newest of the DAG versions of a run's instances; that of the DAG if they have none.

    Runs of Airflow 2 have no version, and no runs have one that `airflow db clean` has removed.
    """
    if len(versions) == 1:
        return next(iter(versions))
    newest = await connection.fetchval(queries["newest_dag_version"], key.dag_id, list(versions))
    return cast("UUID | None", newest)


async def read_earlier_marks(
    connection: AnyConnection, queries: dict[str, str], key: RunKey, version: UUID, task_ids: Collection[str]
) -> dict[str, bool] | None:
    """Return which tasks of a DAG version had Airflow 3.3's own result mark in earlier runs that have ended.

    It is not cached: the author can move the mark without a new version, and a run can be cleared.

    Returns:
        By task, as `RunState.earlier_marks`; `None` if there is no such run, or an older Airflow ran the last of them.
    """
    earlier = [row["id"] for row in await connection.fetch(queries["ended_runs"], *key, version, MAX_EARLIER_RUNS)]
    if not earlier:
        return None
    rows = await connection.fetch(queries["earlier_result_marks"], key.dag_id, version, earlier[:1], list(task_ids))
    if any(row["marked"] is None for row in rows):
        return None
    # Older runs show what the last one does not: of tasks that it skipped and, if it shows marks at all, of tasks that
    # returned nothing. A DAG without marks costs no more than its last run.
    has_marks = any(row["marked"] for row in rows)
    shown = {row["task_id"] for row in rows if row["has_value"] or not has_marks}
    unknown = [task_id for task_id in task_ids if task_id not in shown]
    if not earlier[1:] or not unknown:
        return {row["task_id"]: row["marked"] for row in rows}
    older = await connection.fetch(queries["earlier_result_marks"], key.dag_id, version, earlier[1:], unknown)
    rows += [row for row in older if row["marked"] is not None]
    rows.sort(key=lambda row: row["has_value"])
    return {row["task_id"]: row["marked"] for row in rows}
