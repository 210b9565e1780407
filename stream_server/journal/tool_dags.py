"""What describes DAGs as tools: read from their tags and their newest serialised version."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection
from typing import Any

import asyncpg
import msgspec

from stream_server.domain.dag_description import DagDescription
from stream_server.journal.run_store import RunStore


class _Dag(msgspec.Struct):
    params: Any = None
    doc_md: str | None = None


class _SerializedDag(msgspec.Struct):
    dag: _Dag


async def read_dag_descriptions(run_store: RunStore, tag: str, dag_ids: Collection[str]) -> list[DagDescription]:
    """Return those of some DAGs that have a tag, sorted by id. Errors as for `RunStore.read_history`."""
    async with run_store.acquire_connection() as (connection, queries):
        rows = await connection.fetch(queries["tool_dags"], tag, [*dag_ids])
    # Compressed DAGs may be large.
    return await asyncio.to_thread(lambda: [_build_description(row) for row in rows])


def _build_description(row: asyncpg.Record) -> DagDescription:
    found = _Dag(None, row["documentation"])
    try:
        if row["data_compressed"] is not None:
            found = msgspec.json.decode(zlib.decompress(row["data_compressed"]), type=_SerializedDag).dag
        elif row["params"] is not None:
            found.params = msgspec.json.decode(row["params"])
    except (zlib.error, msgspec.MsgspecError, RecursionError):
        pass  # Airflow checks the params of a run itself, so the tool still works.
    return DagDescription(
        row["dag_id"], row["title"], row["description"], found.doc_md, row["tags"] or (), found.params
    )
