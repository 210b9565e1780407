"""The triggers on tables in which each try is a row (Airflow 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import fetch_status, install_journal
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import running_server
from support.streams import DEADLINE, sse
from support.tries_tables import INSTANCE_TABLES, TRIES_TABLES
from support.waiting import eventually_answered, eventually_async

REGIONS = 5000
SCANNED = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'dynamic_region'"
REQUEST = """
INSERT INTO hitl_detail (ti_id, options, subject, params, params_input, created_at)
SELECT id, '["yes"]', 'Go on?', '{}', '{}', clock_timestamp() FROM task_instance WHERE task_id = 'ask'
"""
RECORDED = "SELECT map_index, iteration FROM stream_server.journal WHERE kind = 'task' AND state = 'queued'"


async def test_the_region_of_a_try_is_found_by_its_index(airflow: AirflowSql, run: RunKey, journal: str) -> None:
    """Also where the planner prefers other joins: Airflow's statements must not wait for a scan of all regions."""
    await airflow.connection.execute(TRIES_TABLES)
    await install_journal(journal, "public", lock_timeout=1, attempts=1)
    region = uuid4()
    await airflow.connection.execute(
        "INSERT INTO dynamic_region SELECT gen_random_uuid(), 'other', NULL FROM generate_series(1, $1::integer)",
        REGIONS,
    )
    await airflow.connection.execute("INSERT INTO dynamic_region VALUES ($1, 'ask', 4)", region)
    await airflow.connection.execute("ANALYZE dynamic_region")
    await airflow.connection.execute(
        "UPDATE task_instance SET region_id = $1, region_index = 2 WHERE task_id = 'ask'", region
    )
    async with airflow.connection.transaction():
        await airflow.connection.execute("SET LOCAL enable_nestloop = off")
        for rows in ("task_id = 'ask'", "task_id <> 'ask'"):
            await airflow.connection.execute(f"UPDATE task_instance SET state = 'queued' WHERE {rows}")
        assert await airflow.connection.fetchval(SCANNED) == 0
    assert sorted(map(tuple, await airflow.connection.fetch(RECORDED)), key=str) == [(-1, None), (-1, None), (2, 4)]


async def test_reads_follow_a_migration_and_a_downgrade_at_once(
    airflow: AirflowSql, run: RunKey, journal: str, settings: Callable[..., Settings]
) -> None:
    """The first stream after a migration, and live requests for human input, although queries are cached."""

    async def is_complete() -> bool:
        return not (await fetch_status(journal)).problems

    async with running_server(settings(check_interval=0.1)) as server:
        await eventually_async(lambda: server.hub.is_live)
        await airflow.set_task(run, "ask", "running")
        for migration in (None, TRIES_TABLES, INSTANCE_TABLES):
            if migration is not None:
                await airflow.connection.execute(migration)
                await eventually_answered(is_complete, DEADLINE, "triggers for the new tables")
            async with sse(server.url, run, "?until=run") as events:
                await events.until("snapshot")
                await airflow.connection.execute("DELETE FROM hitl_detail")
                await airflow.connection.execute(REQUEST)
                assert (await events.until("input"))[-1]["task_id"] == "ask"
            await eventually_async(lambda: server.watcher_count(run) == 0, what="the run is read again")
