"""Airflow's writes on any version of its schema."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from uuid import UUID, uuid4

from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql, serialized_dag

LEAVES = {"ask": ["answer", "log"], "answer": [], "log": []}
"""Two leaves: only a mark decides which one is a result task."""

LATER_COLUMNS = {
    "dag": {"timetable_type", "partition_mapper_info"},  # 3.2, 3.3
    "xcom": {"dag_result"},  # 3.3
}
"""Columns that some of the versions do not have; a misspelt one must not count as such."""


class VersionedSql(AirflowSql):
    """A database session of an Airflow of any version from 3.0 on."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[VersionedSql]:
        async with super().open(url) as session:
            assert isinstance(session, cls)
            has_tries = "region_index" in await session.columns("task_instance")
            yield _load_tries_class()(session.connection) if has_tries else session

    async def add_dag(
        self, dag_id: str, tasks: Mapping[str, Sequence[str]], teardowns: Mapping[str, bool] | None = None
    ) -> UUID:
        version, now = uuid4(), datetime.now(timezone.utc)
        async with self.connection.transaction():
            await self.connection.execute("INSERT INTO dag_bundle (name) VALUES ('dags-folder') ON CONFLICT DO NOTHING")
            await self.insert(
                "dag",
                dag_id=dag_id,
                is_paused=False,
                is_stale=False,
                bundle_name="dags-folder",
                timetable_type="NullTimetable",
                partition_mapper_info={},
                max_active_tasks=16,
                max_consecutive_failed_dag_runs=0,
                has_task_concurrency_limits=False,
            )
            await self.insert(
                "dag_version", id=version, version_number=1, dag_id=dag_id, created_at=now, last_updated=now
            )
            await self.insert(
                "serialized_dag",
                id=uuid4(),
                dag_id=dag_id,
                created_at=now,
                last_updated=now,
                dag_hash="hash",
                dag_version_id=version,
                data=serialized_dag(dag_id, tasks, teardowns),
            )
        return version

    async def insert_xcom(self, **values: object) -> None:
        await self.insert("xcom", **values, timestamp=await self.connection.fetchval("SELECT clock_timestamp()"))

    async def insert(self, table: str, **values: object) -> None:
        """Insert a row, without the columns that this version does not have."""
        columns = await self.columns(table)
        assert values.keys() - columns <= LATER_COLUMNS.get(table, set()), values.keys() - columns
        present = {name: value for name, value in values.items() if name in columns}
        placeholders = ", ".join(f"${number}" for number in range(1, len(present) + 1))
        await self.connection.execute(
            f"INSERT INTO {table} ({', '.join(present)}) VALUES ({placeholders})", *present.values()
        )

    async def columns(self, table: str) -> set[str]:
        rows = await self.connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
            table,
        )
        return {row["attname"] for row in rows}

    async def count(self, table: str) -> int:
        """Return the number of rows of a table that older versions have."""
        return int(await self.connection.fetchval(f"SELECT count(*) FROM {table}"))


def _load_tries_class() -> type[VersionedSql]:
    from matrix.tries_sql import TriesSql  # noqa: PLC0415 # it is a subclass

    return TriesSql


async def fill_tables(airflow: VersionedSql) -> None:
    """Write rows as an Airflow in use does: runs and task instances in many states, with XComs."""
    version = await airflow.add_dag("history", CHAIN, {"clean_up": False})
    succeeded, failed, running, queued = (
        RunKey("history", f"manual__{name}") for name in ("succeeded", "failed", "running", "queued")
    )
    for key in (succeeded, failed, running, queued):
        await airflow.trigger(key, version, list(CHAIN))

    await airflow.complete_chain(succeeded)
    await airflow.set_task(succeeded, "clean_up", "success")
    await airflow.set_run(succeeded, "success")

    await airflow.set_run(failed, "running")
    await airflow.start_task(failed, "ask")
    await airflow.push(failed, "ask", [1, {"nested": None}], xcom_key="other")
    await airflow.set_task(failed, "ask", "failed")
    await airflow.set_task(failed, "answer", "upstream_failed")
    await airflow.set_task(failed, "clean_up", "skipped")
    await airflow.set_run(failed, "failed")

    await airflow.set_run(running, "running")
    await airflow.run_task(running, "ask", "x" * 100_000)
    await airflow.expand(running, version, "answer", 4)
    await airflow.run_task(running, "answer", {"text": "first"}, 0)
    for map_index, state in enumerate(("up_for_retry", "deferred", "removed"), start=1):
        await airflow.start_task(running, "answer", map_index)
        await airflow.set_task(running, "answer", state, map_index)

    cleared, retried = (RunKey("history", f"manual__{name}") for name in ("cleared", "retried"))
    for key in (cleared, retried):
        await airflow.trigger(key, version, list(CHAIN))
        await airflow.complete_chain(key)
    await airflow.set_run(cleared, "success")
    await airflow.clear(cleared, ["ask", "answer"])
    await airflow.set_task(retried, "clean_up", "up_for_retry")
    await airflow.start_task(retried, "clean_up")
    await airflow.set_task(retried, "clean_up", "failed")
    await airflow.set_run(retried, "failed")


async def clear_try_numbers(airflow: VersionedSql) -> None:
    """Remove the try numbers of a task instance, as only the oldest versions can: 3.2 fills them in."""
    await airflow.connection.execute(
        "UPDATE task_instance SET try_number = NULL, max_tries = NULL"
        " WHERE run_id = 'manual__queued' AND task_id = 'clean_up'"
    )


async def request_human_input(airflow: VersionedSql, key: RunKey, task_id: str) -> None:
    """Request human input for a task (3.1), as its operator does before it defers."""
    await airflow.insert(
        "hitl_detail",
        ti_id=await airflow.connection.fetchval(
            "SELECT id FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = $3", *key, task_id
        ),
        options=["yes", "no"],
        subject="Go on?",
        params={},
        params_input={},
        created_at=datetime.now(timezone.utc),
    )
