"""Statements of `airflow db migrate`, as the triggers see them."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql

COUNT = "SELECT count(*) FROM stream_server.journal"
COPY = (
    "INSERT INTO task_instance (id, dag_id, run_id, task_id, map_index, try_number, max_tries, pool, pool_slots, state)"
    " SELECT gen_random_uuid(), dag_id, run_id, task_id, 7, 1, 0, pool, pool_slots, 'success' FROM task_instance"
)


async def test_try_numbers_that_a_migration_changes_are_not_recorded(airflow: AirflowSql, run: RunKey) -> None:
    """The migration to 3.4 changes them in transactions that change other tables."""
    before = await airflow.connection.fetchval(COUNT)
    for rows in ("true", "task_id = 'ask'"):
        async with airflow.connection.transaction():
            await airflow.connection.execute("CREATE TEMPORARY TABLE retired (id uuid) ON COMMIT DROP")
            await airflow.connection.execute(
                f"UPDATE task_instance SET try_number = try_number + 1, id = gen_random_uuid() WHERE {rows}"
            )
    assert await airflow.connection.fetchval(COUNT) == before


async def test_try_numbers_of_restarting_tasks_are_not_recorded(airflow: AirflowSql, run: RunKey) -> None:
    """The migration to 3.4 changes them, too, also in runs that ended long ago."""
    await airflow.connection.execute("UPDATE task_instance SET state = 'restarting'")
    before = await airflow.connection.fetchval(COUNT)
    async with airflow.connection.transaction():
        await airflow.connection.execute("CREATE TEMPORARY TABLE retired (id uuid) ON COMMIT DROP")
        await airflow.connection.execute("UPDATE task_instance SET try_number = try_number + 1")
    assert await airflow.connection.fetchval(COUNT) == before


async def test_copies_of_rows_are_not_recorded_in_a_migration(airflow: AirflowSql, run: RunKey) -> None:
    """A migration changes the columns of a table and its rows in one transaction."""
    before = await airflow.connection.fetchval(COUNT)
    async with airflow.connection.transaction():
        await airflow.connection.execute("ALTER TABLE task_instance ADD COLUMN kept boolean DEFAULT true")
        await airflow.connection.execute(COPY)
        await airflow.connection.execute("UPDATE task_instance SET state = 'failed'")
    assert await airflow.connection.fetchval(COUNT) == before
    await airflow.set_task(run, "ask", "success")
    assert await airflow.connection.fetchval(COUNT) == before + 1
    assert await airflow.connection.fetchval("SELECT last_value + is_called::integer FROM stream_server.losses") == 0


async def test_values_that_a_migration_touches_are_not_recorded(airflow: AirflowSql, run: RunKey) -> None:
    await airflow.run_task(run, "ask", "value")
    before = await airflow.connection.fetchval(COUNT)
    async with airflow.connection.transaction():
        await airflow.connection.execute("ALTER TABLE xcom ADD COLUMN mapped_length integer")
        await airflow.connection.execute("UPDATE xcom SET mapped_length = 1")
    assert await airflow.connection.fetchval(COUNT) == before
    await airflow.connection.execute("UPDATE xcom SET value = '1'")
    assert await airflow.connection.fetchval(COUNT) == before + 1
