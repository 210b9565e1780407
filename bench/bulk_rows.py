"""Many runs and task instances in a few statements, where Airflow would write them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from support.airflow_sql import AirflowSql


class Instance(NamedTuple):
    """A task instance to write."""

    task_id: str
    map_index: int = -1
    state: str | None = None


async def add_runs(airflow: AirflowSql, dag_id: str, run_ids: Sequence[str], version: UUID) -> None:
    """Write running runs without task instances."""
    await airflow.connection.execute(
        "INSERT INTO dag_run (dag_id, run_id, run_type, run_after, state, queued_at, start_date,"
        " created_dag_version_id) SELECT $1, run_id, 'manual', now(), 'running', now(), now(), $3"
        " FROM unnest($2::text[]) AS run_id",
        dag_id,
        list(run_ids),
        version,
    )


async def add_instances(
    airflow: AirflowSql, dag_id: str, run_ids: Sequence[str], version: UUID, instances: Sequence[Instance]
) -> None:
    """Write the same task instances for each of some runs. Those with a state are in their first try."""
    await airflow.connection.execute(
        "INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, state, try_number, max_tries, pool,"
        " pool_slots, dag_version_id, start_date)"
        " SELECT gen_random_uuid(), task_id, $1, run_id, map_index, state, (state IS NOT NULL)::integer, 0,"
        " 'default_pool', 1, $6, CASE WHEN state IS NOT NULL THEN now() END"
        " FROM unnest($2::text[]) AS run_id,"
        " unnest($3::text[], $4::integer[], $5::text[]) AS instance (task_id, map_index, state)",
        dag_id,
        list(run_ids),
        [one.task_id for one in instances],
        [one.map_index for one in instances],
        [one.state for one in instances],
        version,
    )


async def add_values(airflow: AirflowSql, dag_id: str) -> None:
    """Write a return value for each successful task instance of a DAG."""
    await airflow.connection.execute(
        "INSERT INTO xcom (dag_run_id, dag_id, run_id, task_id, map_index, key, value, dag_result, timestamp)"
        " SELECT r.id, t.dag_id, t.run_id, t.task_id, t.map_index, 'return_value', '1', false, clock_timestamp()"
        " FROM task_instance AS t JOIN dag_run AS r USING (dag_id, run_id) WHERE dag_id = $1 AND t.state = 'success'",
        dag_id,
    )


async def read_instance_ids(airflow: AirflowSql, dag_id: str, task_id: str) -> list[UUID]:
    """Return the ids of a task's instances, in the order of their runs."""
    rows = await airflow.connection.fetch(
        "SELECT id FROM task_instance WHERE dag_id = $1 AND task_id = $2 ORDER BY run_id", dag_id, task_id
    )
    return [row["id"] for row in rows]
