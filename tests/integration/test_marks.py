"""Which task answers is remembered from run to run, where only Airflow's own mark says so."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from stream_server.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.server import RunningServer
from support.streams import sse

FORK = {"answer": ["log", "bill"], "log": [], "bill": []}


async def first_frame(server: RunningServer, key: RunKey) -> dict[str, Any]:
    async with sse(server.url, key, "?until=run") as events:
        return await events.next()


async def begin(airflow: AirflowSql, run_id: str, version: Any) -> RunKey:
    key = RunKey("forked", run_id)
    await airflow.trigger(key, version, list(FORK))
    return key


async def test_a_native_mark_is_remembered_for_the_next_runs_of_the_same_version(
    server: RunningServer, airflow: AirflowSql
) -> None:
    version = await airflow.add_dag("forked", FORK)
    first = await begin(airflow, "first", version)
    assert (await first_frame(server, first))["result_tasks"] == []
    await airflow.start_task(first, "answer")
    await airflow.push(first, "answer", 42, dag_result=True)

    second = await begin(airflow, "second", version)
    assert (await first_frame(server, second))["result_tasks"] == ["answer"]
    await airflow.start_task(second, "answer")
    await airflow.set_task(second, "answer", "failed")
    async with httpx.AsyncClient(base_url=server.url) as client:
        path = f"/api/v2/dags/{second.dag_id}/dagRuns/{second.run_id}/result"
        told = (await client.get(path)).json()
    assert (told["outcome"], told["failure"]["task_id"]) == ("failure", "answer")


async def test_the_mark_of_another_version_says_nothing(server: RunningServer, airflow: AirflowSql) -> None:
    first = await begin(airflow, "first", await airflow.add_dag("forked", FORK))
    await airflow.start_task(first, "answer")
    await airflow.push(first, "answer", 42, dag_result=True)
    second = await begin(airflow, "second", await airflow.add_dag("forked", FORK))
    assert (await first_frame(server, second))["result_tasks"] == []


@pytest.mark.parametrize("without", ["dag_result"])
async def test_an_airflow_without_native_marks_is_read_all_the_same(
    server: RunningServer, airflow: AirflowSql, without: str
) -> None:
    await airflow.connection.execute(f"ALTER TABLE xcom DROP COLUMN {without}")
    run = await begin(airflow, "first", await airflow.add_dag("forked", FORK))
    assert (await first_frame(server, run))["result_tasks"] == []
