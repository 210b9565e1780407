"""The writes of a real Airflow as SQL: same statements, order, transactions and role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import OUTPUT_KEY
from stream_server.journal.airflow_tables import MAP_INDEX_COLUMNS, TRY_COLUMNS

CHAIN = {"ask": ["answer"], "answer": ["clean_up"], "clean_up": []}
"""A chain with a teardown; `answer` is its only effective leaf."""

ONLY_WITH_TRIES = TRY_COLUMNS.keys() - MAP_INDEX_COLUMNS.keys()
"""Tables that the installed Airflow, 3.3, does not have yet."""


def serialized_dag(
    dag_id: str, tasks: Mapping[str, Sequence[str]], teardowns: Mapping[str, bool] | None = None
) -> dict[str, object]:
    """Return a DAG as Airflow 3 serialises it: tasks with those below, teardowns with `on_failure_fail_dagrun`."""
    teardowns = teardowns or {}
    operators = []
    for task_id, below in tasks.items():
        operator: dict[str, object] = {"task_id": task_id, "task_type": "_PythonDecoratedOperator"}
        if below:
            operator["downstream_task_ids"] = list(below)
        if task_id in teardowns:
            operator |= {"is_teardown": True, "on_failure_fail_dagrun": teardowns[task_id]}
        operators.append({"__type": "operator", "__var": operator})
    return {"__version": 3, "dag": {"dag_id": dag_id, "tasks": operators, "task_group": {}}}


class AirflowSql:
    """A database session of Airflow."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[AirflowSql]:
        connection = await asyncpg.connect(url)
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await connection.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        try:
            yield cls(connection)
        finally:
            await connection.close()

    async def add_dag(
        self, dag_id: str, tasks: Mapping[str, Sequence[str]], teardowns: Mapping[str, bool] | None = None
    ) -> UUID:
        """Write a version of a DAG, and the DAG itself with the first one, as the dag-processor does."""
        return await self.add_serialized_dag(dag_id, serialized_dag(dag_id, tasks, teardowns))

    async def add_serialized_dag(self, dag_id: str, data: Mapping[str, object]) -> UUID:
        """Write a version of a DAG in its serialised form."""
        version = uuid4()
        async with self.connection.transaction():
            await self.connection.execute("INSERT INTO dag_bundle (name) VALUES ('dags-folder') ON CONFLICT DO NOTHING")
            await self.connection.execute(
                "INSERT INTO dag (dag_id, is_paused, is_stale, bundle_name, timetable_type, partition_mapper_info,"
                " max_active_tasks, max_consecutive_failed_dag_runs, has_task_concurrency_limits)"
                " VALUES ($1, false, false, 'dags-folder', 'NullTimetable', $2, 16, 0, false) ON CONFLICT DO NOTHING",
                dag_id,
                {},
            )
            await self.connection.execute(
                "INSERT INTO dag_version (id, version_number, dag_id, created_at, last_updated)"
                " VALUES ($1, (SELECT count(*) + 1 FROM dag_version WHERE dag_id = $2), $2, now(), now())",
                version,
                dag_id,
            )
            await self.connection.execute(
                "INSERT INTO serialized_dag (id, dag_id, created_at, last_updated, dag_hash, dag_version_id, data)"
                " VALUES (gen_random_uuid(), $1, now(), now(), 'hash', $2, $3)",
                dag_id,
                version,
                data,
            )
        return version

    async def replace_unused_version(self, version: UUID, data: Mapping[str, object]) -> bool:
        """Change a version in place if it has no task instances (`SerializedDagModel.write_dag`); return whether."""
        status = await self.connection.execute(
            "UPDATE serialized_dag SET data = $2, dag_hash = md5(gen_random_uuid()::text), last_updated = now()"
            " WHERE dag_version_id = $1 AND NOT EXISTS (SELECT FROM task_instance WHERE dag_version_id = $1)",
            version,
            data,
        )
        return status == "UPDATE 1"

    async def trigger(self, key: RunKey, version: UUID, task_ids: Sequence[str]) -> None:
        """Create a queued run and its task instances, in one transaction (`airflow-facts` 2.2)."""
        async with self.connection.transaction():
            await self.connection.execute(
                "INSERT INTO dag_run (dag_id, run_id, run_type, run_after, state, queued_at, created_dag_version_id)"
                " VALUES ($1, $2, 'manual', now(), 'queued', now(), $3)",
                *key,
                version,
            )
            for task_id in task_ids:
                await self.add_instance(key, version, task_id, -1)

    async def add_instance(self, key: RunKey, version: UUID, task_id: str, map_index: int) -> None:
        await self.connection.execute(
            "INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool,"
            " pool_slots, dag_version_id) VALUES (gen_random_uuid(), $3, $1, $2, $4, 0, 0, 'default_pool', 1, $5)",
            *key,
            task_id,
            map_index,
            version,
        )

    async def move_to_version(self, key: RunKey, version: UUID, task_ids: Sequence[str]) -> None:
        """Have task instances use another version of the DAG."""
        await self.connection.execute(
            "UPDATE task_instance SET dag_version_id = $3 WHERE dag_id = $1 AND run_id = $2 AND task_id = ANY ($4)",
            *key,
            version,
            list(task_ids),
        )

    async def delete_instances(self, key: RunKey, task_id: str) -> None:
        """Delete the instances of a task, as `DELETE …/taskInstances/{task_id}` does."""
        await self.connection.execute(
            "DELETE FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = $3", *key, task_id
        )

    async def wait_for_trigger(self, key: RunKey, task_id: str) -> None:
        """Have the instances of a task wait for a new trigger, without a change of their state."""
        await self.connection.execute(
            "WITH created AS (INSERT INTO trigger (classpath, kwargs, created_date) VALUES ('path', '', now())"
            " RETURNING id) UPDATE task_instance SET trigger_id = created.id FROM created"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3",
            *key,
            task_id,
        )

    async def set_run(self, key: RunKey, state: str) -> None:
        """Change the state of a run, as the scheduler does."""
        await self.connection.execute(
            "UPDATE dag_run SET state = $3::text, updated_at = now(),"
            " start_date = CASE WHEN $3::text = 'running' THEN now() ELSE start_date END,"
            " end_date = CASE WHEN $3::text IN ('success', 'failed') THEN now() ELSE end_date END"
            " WHERE dag_id = $1 AND run_id = $2",
            *key,
            state,
        )

    async def set_task(self, key: RunKey, task_id: str, state: str | None, map_index: int = -1) -> None:
        """Change the state of a task instance; a new try starts when it is scheduled from no state or for a retry.

        A deferred task has a `next_method` until it ends, and keeps its `start_date` when it runs again.
        """
        if state == "up_for_retry":
            await self.archive_try(key, task_id, map_index)
        await self.connection.execute(
            "UPDATE task_instance SET"
            " try_number = try_number + CASE WHEN $5::text = 'scheduled' AND (state IS NULL OR state = 'up_for_retry')"
            "     THEN 1 ELSE 0 END,"
            " state = $5::text, updated_at = clock_timestamp(),"
            " start_date = CASE WHEN $5::text = 'running' AND next_method IS NULL"
            "     THEN clock_timestamp() ELSE start_date END,"
            " next_method = CASE WHEN $5::text IN ('deferred', 'awaiting_input') THEN 'execute_complete'"
            "     WHEN $5::text IN ('scheduled', 'queued', 'running') THEN next_method END,"
            " end_date = CASE WHEN $5::text IN ('success', 'failed', 'skipped', 'upstream_failed')"
            "     THEN clock_timestamp() ELSE end_date END"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4",
            *key,
            task_id,
            map_index,
            state,
        )

    async def archive_try(self, key: RunKey, task_id: str, map_index: int = -1) -> None:
        """Copy a try to the history, for a retry or when it is cleared (`TaskInstance.prepare_db_for_next_try`)."""
        await self.connection.execute(
            "WITH given_up AS ("
            " UPDATE task_instance AS t SET id = gen_random_uuid() FROM task_instance AS before"
            " WHERE t.id = before.id AND t.dag_id = $1 AND t.run_id = $2 AND t.task_id = $3 AND t.map_index = $4"
            " RETURNING before.*)"
            " INSERT INTO task_instance_history"
            " (task_instance_id, dag_id, run_id, task_id, map_index, try_number, state, pool, pool_slots)"
            " SELECT id, dag_id, run_id, task_id, map_index, try_number, 'failed', pool, pool_slots FROM given_up"
            " ON CONFLICT DO NOTHING",
            *key,
            task_id,
            map_index,
        )

    async def heartbeat(self, key: RunKey, task_id: str) -> None:
        await self.connection.execute(
            "UPDATE task_instance SET last_heartbeat_at = clock_timestamp(), updated_at = clock_timestamp()"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3",
            *key,
            task_id,
        )

    async def push(
        self,
        key: RunKey,
        task_id: str,
        value: object,
        map_index: int = -1,
        *,
        xcom_key: str = "return_value",
        dag_result: bool = False,
    ) -> None:
        """Push an XCom: a delete and an insert in one transaction (`XComModel.set`)."""
        async with self.connection.transaction():
            run = await self.connection.fetchval("SELECT id FROM dag_run WHERE dag_id = $1 AND run_id = $2", *key)
            await self.connection.execute(
                "DELETE FROM xcom WHERE dag_run_id = $1 AND task_id = $2 AND map_index = $3 AND key = $4",
                run,
                task_id,
                map_index,
                xcom_key,
            )
            await self.insert_xcom(
                dag_run_id=run,
                dag_id=key.dag_id,
                run_id=key.run_id,
                task_id=task_id,
                map_index=map_index,
                key=xcom_key,
                value=value,
                dag_result=dag_result,
            )

    async def emit_output(
        self,
        key: RunKey,
        task_id: str,
        index: int,
        *items: object,
        map_index: int = -1,
        try_number: int = 1,
    ) -> None:
        """Emit output of a running task, as `stream_server.authoring` does; strings are chunks."""
        chunks = [{"chunk": item} if isinstance(item, str) else item for item in items]
        batch = {"try_number": try_number, "index": index, "items": chunks}
        await self.push(key, task_id, batch, map_index, xcom_key=OUTPUT_KEY)

    async def insert_xcom(self, **values: object) -> None:
        """Insert an XCom with the current time."""
        placeholders = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        await self.connection.execute(
            f"INSERT INTO xcom ({', '.join(values)}, timestamp) VALUES ({placeholders}, clock_timestamp())",
            *values.values(),
        )

    async def start_task(self, key: RunKey, task_id: str, map_index: int = -1) -> None:
        """Move a task instance to `running`, one transaction for each step."""
        for state in ("scheduled", "queued", "running"):
            await self.set_task(key, task_id, state, map_index)

    async def run_task(self, key: RunKey, task_id: str, value: object, map_index: int = -1) -> None:
        """Run a task instance that returns a value."""
        await self.start_task(key, task_id, map_index)
        await self.push(key, task_id, value, map_index)
        await self.set_task(key, task_id, "success", map_index)

    async def complete_chain(self, key: RunKey) -> None:
        """Run `CHAIN` to the end of its result task; the teardown still runs."""
        await self.set_run(key, "running")
        await self.run_task(key, "ask", {"question": "why"})
        await self.run_task(key, "answer", {"text": "because"})
        await self.start_task(key, "clean_up")

    async def clear(self, key: RunKey, task_ids: Sequence[str]) -> None:
        """Clear tasks of a finished run: first the run, then its tasks, in one transaction (`airflow-facts` 2.4)."""
        async with self.connection.transaction():
            await self.connection.execute(
                "UPDATE dag_run SET state = 'queued', clear_number = clear_number + 1, queued_at = now(),"
                " start_date = NULL, end_date = NULL WHERE dag_id = $1 AND run_id = $2",
                *key,
            )
            instances = await self.connection.fetch(
                "SELECT task_id, map_index FROM task_instance"
                " WHERE dag_id = $1 AND run_id = $2 AND task_id = ANY ($3::text[])",
                *key,
                task_ids,
            )
            for instance in instances:
                await self.archive_try(key, *instance)
            await self.connection.execute(
                "UPDATE task_instance SET state = NULL, max_tries = try_number"
                " WHERE dag_id = $1 AND run_id = $2 AND task_id = ANY ($3::text[])",
                *key,
                task_ids,
            )

    async def expand(self, key: RunKey, version: UUID, task_id: str, length: int) -> None:
        """Expand a mapped task, in one transaction (`airflow-facts` 2.7)."""
        async with self.connection.transaction():
            await self.connection.execute(
                "UPDATE task_instance SET map_index = 0"
                " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = -1",
                *key,
                task_id,
            )
            for map_index in range(1, length):
                await self.add_instance(key, version, task_id, map_index)

    async def request_input(self, key: RunKey, task_id: str, map_index: int = -1, **fields: object) -> None:
        """Request human input for a task instance, as the Execution API does for a human-in-the-loop operator.

        Args:
            key: The run.
            task_id: The task.
            map_index: Index of the instance.
            fields: Other values of columns than the default ones.
        """
        values = {"options": ["Approve", "Reject"], "subject": "Go on?", "params": {}, "params_input": {}, **fields}
        columns = ", ".join(values)
        placeholders = ", ".join(f"${number}" for number in range(5, 5 + len(values)))
        await self.connection.execute(
            f"INSERT INTO hitl_detail (ti_id, created_at, {columns}) SELECT id, clock_timestamp(), {placeholders}"
            " FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4",
            *key,
            task_id,
            map_index,
            *values.values(),
        )

    async def answer_input(
        self, key: RunKey, task_id: str, *options: str, map_index: int = -1, by: str | None = "ada", **fields: object
    ) -> None:
        """Answer a request, and resume its task instance in the same transaction (`update_hitl_detail`)."""
        async with self.connection.transaction():
            await self.set_task(key, task_id, "scheduled", map_index)
            await self.connection.execute(
                "UPDATE hitl_detail SET responded_at = clock_timestamp(), responded_by = $5, chosen_options = $6,"
                " params_input = $7 FROM task_instance AS t WHERE t.id = ti_id AND dag_id = $1 AND run_id = $2"
                " AND task_id = $3 AND map_index = $4",
                *key,
                task_id,
                map_index,
                None if by is None else {"id": by, "name": by.title()},
                list(options),
                fields,
            )

    async def write_unknown_row(self, key: RunKey | None = None) -> None:
        """Write a journal row of an unknown kind, as triggers of a newer version might."""
        async with self.connection.transaction():
            await self.connection.execute(
                "INSERT INTO stream_server.journal (kind, dag_id, run_id) VALUES ('unknown', $1, $2)",
                *(key or (None, None)),
            )
            await self.connection.execute("SELECT stream_server.ring()")

    async def empty_journal(self) -> None:
        """Delete all rows of the journal, as pruning does."""
        await self.connection.execute("DELETE FROM stream_server.output")
        await self.connection.execute(
            "WITH gone AS (DELETE FROM stream_server.journal RETURNING txid) UPDATE stream_server.meta"
            " SET pruned_to = (SELECT txid FROM gone ORDER BY txid DESC LIMIT 1)"
        )

    async def delete_run(self, key: RunKey) -> None:
        async with self.connection.transaction():
            await self.connection.execute("DELETE FROM task_instance WHERE dag_id = $1 AND run_id = $2", *key)
            await self.connection.execute("DELETE FROM dag_run WHERE dag_id = $1 AND run_id = $2", *key)
