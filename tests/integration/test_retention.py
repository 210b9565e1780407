"""Pruning of the journal; clients that follow it do not notice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal import retention as pruner
from stream_server.journal.queries import load_queries
from stream_server.journal.reader import READER_SETTINGS
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import running_server
from support.streams import sse, states
from support.waiting import eventually_answered, eventually_async

LONG_AGO = "now() - interval '2 hours'"


async def write_rows(airflow: AirflowSql, count: int, at: str = "now()") -> None:
    """Write rows of a usual size to the journal, in transactions of ten."""
    await airflow.connection.execute(
        f"""DO $$ BEGIN FOR batch IN 1..{count // 10} LOOP
            INSERT INTO stream_server.journal
                (at, kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state, start_date)
            SELECT {at}, 'task', 'a_dag_of_usual_name', 'manual__2026-11-22T10:00:00.123456+00:00', 'answer', number, 1,
                   'running', 'queued', now()
            FROM generate_series(1, 10) AS number;
            COMMIT;
        END LOOP; END $$"""
    )


async def count_rows(airflow: AirflowSql) -> int:
    return int(await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal"))


@pytest.fixture
async def runs(journal: str) -> AsyncIterator[RunStore]:
    runs = RunStore(journal, pool_size=2, max_result_bytes=0)
    yield runs
    await runs.close()


async def prune_all(runs: RunStore, age: float | None, size: int | None) -> list[int]:
    """Prune as the server does; return the number of rows of each batch."""
    batches = [await runs.prune_journal(age, 1000, size)]
    while batches[-1]:
        batches.append(await runs.prune_journal(age, 1000, size, onward=True))
    return batches[:-1]


async def test_pruning_stops_at_the_configured_size(airflow: AirflowSql, runs: RunStore) -> None:
    await write_rows(airflow, 20_000)
    size = 1_500_000
    batches = await prune_all(runs, None, size)
    assert max(batches) <= 1000
    await airflow.connection.execute("VACUUM FULL stream_server.journal")
    left = await airflow.connection.fetchval(
        "SELECT pg_relation_size('stream_server.journal') + pg_indexes_size('stream_server.journal')"
    )
    assert 0.8 * size < left <= size
    newest = await airflow.connection.fetchval("SELECT max(id) - count(*) FROM stream_server.journal")
    assert newest == await airflow.connection.fetchval("SELECT min(id) - 1 FROM stream_server.journal"), "oldest first"


async def test_a_small_journal_is_not_pruned(airflow: AirflowSql, runs: RunStore) -> None:
    await write_rows(airflow, 1000, LONG_AGO)
    assert await prune_all(runs, None, 1_000_000) == []
    assert await prune_all(runs, None, None) == []
    assert await prune_all(runs, 3 * 3600, None) == []
    assert await count_rows(airflow) == 1000


async def test_each_bound_deletes_rows(airflow: AirflowSql, runs: RunStore) -> None:
    await write_rows(airflow, 500, LONG_AGO)
    await write_rows(airflow, 1500)
    assert sum(await prune_all(runs, 3600, 10_000_000)) == 500
    assert sum(await prune_all(runs, 3600, 100_000)) > 500


async def test_a_gap_among_the_ids_deletes_no_more_rows(airflow: AirflowSql, runs: RunStore) -> None:
    await write_rows(airflow, 10)
    await airflow.connection.execute("SELECT setval(pg_get_serial_sequence('stream_server.journal', 'id'), 1000000)")
    await write_rows(airflow, 990)
    assert await prune_all(runs, None, 1_000_000) == []


async def test_a_row_that_was_just_committed_is_kept(journal: str, airflow: AirflowSql, runs: RunStore) -> None:
    await write_rows(airflow, 10, LONG_AGO)
    async with AirflowSql.open(journal) as late:
        transaction = late.connection.transaction()
        await transaction.start()
        await late.connection.execute(f"INSERT INTO stream_server.journal (kind, at) VALUES ('task', {LONG_AGO})")
        settled = await runs.read_snapshot()
        await transaction.commit()
    assert await runs.prune_journal(3600, 1000, 1, settled=settled) == 10
    assert await count_rows(airflow) == 1
    assert await runs.prune_journal(3600, 1000, 1, settled=await runs.read_snapshot()) == 1


async def test_deleting_costs_the_same_beside_a_long_transaction(
    journal: str, airflow: AirflowSql, runs: RunStore
) -> None:
    await write_rows(airflow, 20_000)
    async with long_transactions(journal):
        await prune_all(runs, None, 1_000_000)
        await airflow.connection.execute("SET enable_seqscan = off")
        plan = await explain(
            airflow.connection,
            "SELECT FROM stream_server.journal WHERE txid >= (SELECT pruned_to FROM stream_server.meta)"
            " ORDER BY txid LIMIT 1000",
        )
        assert count_pages(plan) < 100
        assert await runs.prune_journal(None, 1000, 900_000, onward=True) > 0


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "ROUND_SECONDS", (0.05, 0.05))


@pytest.mark.usefixtures("without_pauses")
async def test_a_run_is_watched_across_its_own_deletion_by_size(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    async with running_server(settings(retention="0", retention_size="1")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.set_task(run, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"

            async def is_empty() -> bool:
                return await count_rows(airflow) == 0

            await eventually_answered(is_empty, what="an empty journal")
            await airflow.run_task(run, "answer", "still there")
            rest = await events.rest()
    assert states(rest, "answer")[:3] == ["scheduled", "queued", "running"]
    assert [frame["type"] for frame in rest if frame["type"] != "task"] == ["result", "end"]
    assert rest[-2]["results"] == {"answer": "still there"}


@asynccontextmanager
async def long_transactions(url: str) -> AsyncIterator[None]:
    """Open two long transactions: one that has written, and one that keeps its snapshot."""
    writer, reader = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await writer.execute("BEGIN")
        await writer.execute("SELECT pg_current_xact_id()")
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT FROM stream_server.journal LIMIT 1")
        yield
    finally:
        await writer.close()
        await reader.close()


async def explain(connection: asyncpg.Connection[asyncpg.Record], statement: str) -> dict[str, Any]:
    """Run a statement; return its plan with run-time statistics."""
    found = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
    (plan,) = json.loads(found) if isinstance(found, str) else found
    top: dict[str, Any] = plan["Plan"]
    return top


def count_pages(plan: dict[str, Any]) -> int:
    """Return the number of pages read, from cache or disk."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def plan_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all nodes of a plan."""
    return [plan] + [node for child in plan.get("Plans", []) for node in plan_nodes(child)]


async def test_a_long_transaction_makes_no_read_slower(journal: str, airflow: AirflowSql, runs: RunStore) -> None:
    await airflow.connection.execute("; ".join(f"SET {setting}" for setting in READER_SETTINGS))
    await airflow.connection.execute(f"PREPARE rows_after (text) AS {load_queries(airflow='public')['rows_after']}")
    pages = {}
    for name in ("before", "beside"):
        async with long_transactions(journal):
            if name == "beside":
                await write_rows(airflow, 20_000)
                # Half of the rows are deleted, and vacuum can't remove them now.
                assert sum(await prune_all(runs, None, 2_000_000)) > 5000
            cursor = await runs.read_snapshot()
            await write_rows(airflow, 50)
            plan = await explain(airflow.connection, f"EXECUTE rows_after ('{cursor}')")
        assert plan["Actual Rows"] == 50
        assert sum(node.get("Rows Removed by Filter", 0) for node in plan_nodes(plan)) == 0
        assert sum(node.get("Rows Removed by Index Recheck", 0) for node in plan_nodes(plan)) == 0
        assert not [node for node in plan_nodes(plan) if node["Node Type"] == "Seq Scan" and node["Alias"] == "journal"]
        pages[name] = count_pages(plan)
    assert pages["beside"] <= pages["before"] + 10 < 60


@pytest.mark.usefixtures("without_pauses")
async def test_no_session_of_the_server_is_idle_in_a_transaction(
    journal: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    seen: Counter[str] = Counter()

    async def watch() -> None:
        observer = await asyncpg.connect(journal)
        try:
            while True:
                for row in await observer.fetch(
                    "SELECT state, count(*) AS count FROM pg_stat_activity"
                    " WHERE application_name = 'stream_server' AND datname = current_database() AND state IS NOT NULL"
                    " GROUP BY state"
                ):
                    seen[row["state"]] += row["count"]
        finally:
            await observer.close()

    busy_settings = settings(poll_interval="5ms", check_interval="5ms", retention="10ms", retention_size="1")
    async with running_server(busy_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        observing = asyncio.create_task(watch())
        async with sse(server.url, run, "?until=run") as events:
            await events.next()
            await airflow.complete_chain(run)
            await airflow.set_task(run, "clean_up", "success")
            await airflow.set_run(run, "success")
            assert (await events.rest())[-1]["outcome"] == "result"
        await eventually_async(lambda: observing.done() or seen["active"] > 20)
        observing.cancel()
        await asyncio.gather(observing, return_exceptions=True)
    assert seen["idle"] > 20
    assert {state for state in seen if "transaction" in state} == set()
