"""Frames of large runs, read by clients with their default limits."""

from __future__ import annotations

import json
from uuid import UUID

from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.server import RunningServer
from support.streams import stream_path


async def trigger_tasks(airflow: AirflowSql, count: int) -> tuple[RunKey, UUID, list[str]]:
    tasks = [f"group.task_{number:03}" for number in range(count)]
    version = await airflow.add_dag("large", dict.fromkeys(tasks, ()))
    key = RunKey("large", "r")
    await airflow.trigger(key, version, tasks)
    await airflow.set_run(key, "running")
    return key, version, tasks


async def test_the_snapshot_of_many_mapped_tasks_is_read_with_default_limits(
    server: RunningServer, airflow: AirflowSql
) -> None:
    key, _, _ = await trigger_tasks(airflow, 300)
    await airflow.connection.execute(
        "INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots,"
        " dag_version_id, state, start_date, end_date) SELECT gen_random_uuid(), task_id, dag_id, run_id, index, 1, 0,"
        " pool, pool_slots, dag_version_id, 'upstream_failed', now(), now() FROM task_instance,"
        " generate_series(0, 59) AS index WHERE dag_id = $1 AND run_id = $2",
        *key,
    )
    async with connect(server.url.replace("http", "ws") + stream_path(key)) as websocket:
        snapshot = json.loads(await websocket.recv())
    assert snapshot["type"] == "snapshot"
    counted = sum(sum(states.values()) for states in snapshot["counts"].values())
    assert len(snapshot["tasks"]) + counted == 300 * 61


async def test_a_result_as_large_as_it_may_be_is_read_with_default_limits(
    server: RunningServer, airflow: AirflowSql
) -> None:
    key, _, tasks = await trigger_tasks(airflow, 3)
    for task_id, length in zip(tasks, (600_000, 300_000, 500_000), strict=True):
        await airflow.run_task(key, task_id, "x" * length)
    query = "&".join(f"result={task_id}" for task_id in tasks)
    async with connect(f"{server.url.replace('http', 'ws')}{stream_path(key)}?{query}") as websocket:
        frames = [json.loads(message) async for message in websocket]
    (result,) = [frame for frame in frames if frame["type"] == "result"]
    assert {task_id: len(value) for task_id, value in result["results"].items()} == {
        tasks[1]: 300_000,
        tasks[2]: 500_000,
    }
    assert {task_id: reference["bytes"] for task_id, reference in result["references"].items()} == {tasks[0]: 600_002}
