"""Airflow's writes where each try of a task is a row of its own (3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from matrix.versioned_sql import VersionedSql
from stream_server.domain.run_state import RunKey

SENTINEL_REGION = UUID(int=0)
UNFINISHED = ("scheduled", "queued", "running", "restarting", "deferred", "up_for_retry", "up_for_reschedule")

LIVE = "dag_id = $1 AND run_id = $2 AND task_id = $3 AND region_index = $4 AND working_set"


class TriesSql(VersionedSql):
    """A database session of Airflow 3.4 (`TaskInstance.prepare_db_for_next_try` and `archive`)."""

    async def add_instance(
        self, key: RunKey, version: UUID, task_id: str, map_index: int, region: UUID = SENTINEL_REGION
    ) -> None:
        await self.connection.execute(
            "INSERT INTO task_instance (id, task_id, dag_id, run_id, region_index, try_number, max_tries, pool,"
            " pool_slots, dag_version_id, region_id) VALUES (gen_random_uuid(), $3, $1, $2, $4, 0, 0, 'default_pool',"
            " 1, $5, $6)",
            *key,
            task_id,
            map_index,
            version,
            region,
        )

    async def set_task(self, key: RunKey, task_id: str, state: str | None, map_index: int = -1) -> None:
        """Change the state of a task instance. A retry makes a successor in the same transaction."""
        async with self.connection.transaction():
            await self.connection.execute(
                "UPDATE task_instance SET"
                " try_number = CASE WHEN $5::text = 'scheduled' THEN greatest(try_number, 1) ELSE try_number END,"
                " state = $5::text, updated_at = clock_timestamp(),"
                " start_date = CASE WHEN $5::text = 'running' AND next_method IS NULL"
                "     THEN clock_timestamp() ELSE start_date END,"
                " next_method = CASE WHEN $5::text = 'deferred' THEN 'execute_complete'"
                "     WHEN $5::text IN ('scheduled', 'queued', 'running') THEN next_method END,"
                " end_date = CASE WHEN $5::text IN ('success', 'failed', 'skipped', 'upstream_failed', 'up_for_retry')"
                "     THEN clock_timestamp() ELSE end_date END"
                f" WHERE {LIVE}",
                *key,
                task_id,
                map_index,
                state,
            )
            if state == "up_for_retry":
                await self.archive_try(key, task_id, map_index)

    async def archive_try(self, key: RunKey, task_id: str, map_index: int = -1) -> None:
        """Archive a try, and insert its successor with the same state."""
        state = await self.connection.fetchval(
            f"SELECT state FROM task_instance WHERE {LIVE} FOR UPDATE", *key, task_id, map_index
        )
        archived = await self.connection.fetchval(
            "UPDATE task_instance SET working_set = NULL, archived_reason = 'retry', trigger_id = NULL,"
            " state = CASE WHEN state = ANY ($5) OR state IS NULL THEN 'failed' ELSE state END,"
            " end_date = coalesce(end_date, clock_timestamp())"
            f" WHERE {LIVE} RETURNING id",
            *key,
            task_id,
            map_index,
            UNFINISHED,
        )
        await self.connection.execute(
            "INSERT INTO task_instance (id, task_id, dag_id, run_id, region_id, region_index, try_number, max_tries,"
            " pool, pool_slots, dag_version_id, state, start_date, end_date)"
            " SELECT gen_random_uuid(), task_id, dag_id, run_id, region_id, region_index, try_number + 1, max_tries,"
            " pool, pool_slots, dag_version_id, $2, start_date, end_date FROM task_instance WHERE id = $1",
            archived,
            state,
        )

    async def count(self, table: str) -> int:
        successors = {
            "task_instance": "task_instance WHERE working_set",
            "task_instance_history": "task_instance WHERE working_set IS NULL",
            "xcom": "xcom_v1",
        }
        return await super().count(successors.get(table, table))

    async def heartbeat(self, key: RunKey, task_id: str) -> None:
        await self.connection.execute(
            "UPDATE task_instance SET last_heartbeat_at = clock_timestamp(), updated_at = clock_timestamp()"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND working_set",
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
        """Push an XCom of the live try (`XComModel.set_for_attempt`)."""
        await self.connection.execute(
            "INSERT INTO xcom_v2 (id, task_instance_id, key, value, timestamp, dag_result)"
            f" SELECT gen_random_uuid(), id, $5, $6, clock_timestamp(), $7 FROM task_instance WHERE {LIVE}"
            " ON CONFLICT (task_instance_id, key) DO UPDATE"
            " SET value = excluded.value, timestamp = excluded.timestamp, dag_result = excluded.dag_result",
            *key,
            task_id,
            map_index,
            xcom_key,
            value,
            dag_result,
        )

    async def clear(self, key: RunKey, task_ids: Sequence[str]) -> None:
        """Clear tasks of a run (`clear_task_instances`)."""
        async with self.connection.transaction():
            await self.connection.execute(
                "UPDATE dag_run SET state = 'queued', clear_number = clear_number + 1, queued_at = now(),"
                " start_date = NULL, end_date = NULL WHERE dag_id = $1 AND run_id = $2",
                *key,
            )
            instances = await self.connection.fetch(
                "SELECT task_id, region_index, state FROM task_instance"
                " WHERE dag_id = $1 AND run_id = $2 AND task_id = ANY ($3::text[]) AND working_set",
                *key,
                task_ids,
            )
            for task_id, index, state in instances:
                if state not in {None, "up_for_retry", "running", "restarting"}:
                    await self.archive_try(key, task_id, index)
                await self.connection.execute(
                    f"UPDATE task_instance SET state = $5 WHERE {LIVE}",
                    *key,
                    task_id,
                    index,
                    "restarting" if state in {"running", "restarting"} else None,
                )

    async def complete_restart(self, key: RunKey, task_id: str, map_index: int = -1) -> None:
        """Give a restarting task instance its next try (`TaskInstance.complete_restart`)."""
        async with self.connection.transaction():
            await self.archive_try(key, task_id, map_index)
            await self.connection.execute(
                f"UPDATE task_instance SET state = NULL WHERE {LIVE}", *key, task_id, map_index
            )

    async def supersede(self, key: RunKey, task_id: str, map_index: int = -1) -> None:
        """Archive a task instance without a successor."""
        await self.connection.execute(
            f"UPDATE task_instance SET working_set = NULL, archived_reason = 'superseded' WHERE {LIVE}",
            *key,
            task_id,
            map_index,
        )

    async def add_region(
        self, key: RunKey, node_id: str, parent: UUID | None = None, parent_index: int | None = None
    ) -> UUID:
        """Create a region: of a mapped task, or of a task loop."""
        return UUID(
            str(
                await self.connection.fetchval(
                    "INSERT INTO dynamic_region (id, dag_id, run_id, node_id, parent_region_id, parent_region_index,"
                    " family_root_id, path, created_at) VALUES (gen_random_uuid(), $1, $2, $3, $4, $5,"
                    " gen_random_uuid(), '', now()) RETURNING id",
                    *key,
                    node_id,
                    parent,
                    parent_index,
                )
            )
        )

    async def expand(self, key: RunKey, version: UUID, task_id: str, length: int) -> None:
        """Expand a mapped task whose placeholder is in the sentinel region (`TaskInstance.expand_mapped_task`)."""
        async with self.connection.transaction():
            region = await self.add_region(key, task_id)
            for change, value in (("region_id", region), ("region_index", 0)):
                await self.connection.execute(
                    f"UPDATE task_instance SET {change} = $5 WHERE {LIVE}", *key, task_id, -1, value
                )
            for map_index in range(1, length):
                await self.add_instance(key, version, task_id, map_index, region)
