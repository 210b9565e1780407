"""The triggers on tables in which each try is a row (Airflow 3.4)."""

from __future__ import annotations

from uuid import uuid4

from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from support.airflow_sql import AirflowSql
from support.tries_tables import TRIES_TABLES

REGIONS = 5000
SCANNED = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'dynamic_region'"
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
