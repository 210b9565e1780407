"""A client chooses its cursor, so a very old one must not cost more the longer the journal is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal import run_store
from stream_server.journal.queries import load_queries
from stream_server.journal.run_store import MAX_HISTORY, MAX_HISTORY_SCAN, RunStore
from stream_server.protocol.cursor import JournalPosition
from support.airflow_sql import AirflowSql
from support.server import RunningServer
from support.streams import sse, states, types

ROWS = 120_000
FOREIGN_RUN = ("other", "r")


@pytest.fixture
async def store(journal: str) -> AsyncIterator[RunStore]:
    store = RunStore(journal, pool_size=1, max_result_bytes=0)
    yield store
    await store.close()


async def write_rows(connection: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    """Write rows of another run, ten in a transaction."""
    await connection.execute(
        f"DO $$ BEGIN FOR batch IN 1..{count // 10} LOOP INSERT INTO stream_server.journal"
        " (kind, dag_id, run_id, task_id, map_index, try_number, state)"
        " SELECT 'task', 'other', 'r', 't', number, 1, 'running' FROM generate_series(1, 10) AS number;"
        " COMMIT; END LOOP; END $$"
    )


async def oldest_position(connection: asyncpg.Connection[asyncpg.Record]) -> JournalPosition:
    epoch = await connection.fetchval("SELECT epoch FROM stream_server.meta")
    return JournalPosition.from_snapshot(epoch, "1:1:")


def plan_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from plan_nodes(child)


async def count_rows_read(
    connection: asyncpg.Connection[asyncpg.Record], position: JournalPosition, run: tuple[str, str] | None
) -> int:
    """Return how many rows and index entries the history query reads."""
    query = load_queries(airflow="public")["history"]
    arguments = (*(run or (None, None)), position.snapshot, MAX_HISTORY + 1, position.epoch, MAX_HISTORY_SCAN)
    (plan,) = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)
    return int(
        sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in plan_nodes(plan["Plan"])
            if "Scan" in node["Node Type"]
        )
    )


@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_the_rows_read_for_a_cursor_are_bounded(airflow: AirflowSql, plan: str) -> None:
    await write_rows(airflow.connection, ROWS)
    # As autovacuum does. Without statistics, PostgreSQL may read the index to its end, but not the table.
    await airflow.connection.execute("ANALYZE stream_server.journal")
    await airflow.connection.execute(f"SET plan_cache_mode = {plan}")
    oldest = await oldest_position(airflow.connection)
    # The count and the row of `meta`; nothing is read beside it.
    assert await count_rows_read(airflow.connection, oldest, FOREIGN_RUN) <= MAX_HISTORY_SCAN + 10
    assert await count_rows_read(airflow.connection, oldest, None) <= MAX_HISTORY_SCAN + 10
    snapshot = await airflow.connection.fetchval("SELECT pg_current_snapshot()::text")
    await write_rows(airflow.connection, 100)
    newest = JournalPosition.from_snapshot(oldest.epoch, snapshot)
    assert await count_rows_read(airflow.connection, newest, FOREIGN_RUN) <= 1000
    await airflow.connection.execute("UPDATE stream_server.meta SET pruned_to = '5'")
    assert await count_rows_read(airflow.connection, oldest, None) <= 10


async def test_a_cursor_before_too_many_rows_resets_the_stream(
    server: RunningServer, airflow: AirflowSql, run: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "MAX_HISTORY_SCAN", 100)
    async with sse(server.url, run) as events:
        await events.next()
        cursor = events.ids[-1]
    for rows, expected in ((50, []), (110, ["reset", "snapshot"])):
        await write_rows(airflow.connection, rows)
        async with sse(server.url, run, "?until=run", headers={"Last-Event-ID": cursor or ""}) as events:
            await airflow.set_task(run, "ask", "scheduled")
            frames = await events.until("task")
            assert states(frames, "ask")[-1:] == ["scheduled"]
            assert [kind for kind in types(frames) if kind != "resumed"] == [*expected, "task"]
            if expected:
                assert frames[0]["reason"] == "cursor_expired"
        await airflow.set_task(run, "ask", None)
        async with sse(server.url, run) as events:
            await events.next()
            cursor = events.ids[-1]


async def test_a_cursor_before_too_many_rows_resets_a_stream_of_many_runs(
    server: RunningServer, airflow: AirflowSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "MAX_HISTORY_SCAN", 100)
    await write_rows(airflow.connection, 200)
    position = await oldest_position(airflow.connection)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=10) as client,
        client.stream("GET", "/api/v2/stream", headers={"Last-Event-ID": f"{position.epoch}.1:1:"}) as response,
    ):
        lines = response.aiter_lines()
        data = ""
        while not data.startswith("data:"):
            data = await anext(lines)
    assert json.loads(data.removeprefix("data:"))["reason"] == "cursor_expired"


async def test_a_position_of_another_epoch_has_no_history(store: RunStore, airflow: AirflowSql, run: RunKey) -> None:
    """The database may have been replaced since the tail read it last."""
    position = await oldest_position(airflow.connection)
    assert await store.read_history(run, position)
    assert await store.read_history(run, JournalPosition("another", position.xmin, position.xmax)) is None
