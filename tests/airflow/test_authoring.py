"""Each form in which a DAG file marks its result tasks, run by a real Airflow 3.3."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.graph import Graph
from stream_server.domain.run_state import RunKey
from support import authoring_forms
from support.airflow_version import HAS_LOOPS
from support.streams import sse
from support.waiting import eventually

RUN_SECONDS = 120.0
"""Deadline of all runs together."""

NATIVE = {dag_id: results for dag_id, results in authoring_forms.RESULTS.items() if dag_id != "form_plain"}
"""Those that our package has marked, for Airflow too."""


@pytest.fixture(scope="module")
def runs(airflow: AirflowRestClient) -> dict[str, RunKey]:
    """A run of each DAG, all triggered at once."""
    eventually(
        lambda: all(airflow.get_dag(dag_id) for dag_id in authoring_forms.RESULTS), RUN_SECONDS, "all DAGs are read"
    )
    return {dag_id: RunKey(dag_id, airflow.trigger_run(dag_id)) for dag_id in authoring_forms.RESULTS}


async def fetch(stack: DemoStack, query: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(stack.database_url)
    try:
        return list(await connection.fetch(query, *arguments))
    finally:
        await connection.close()


@pytest.mark.parametrize("dag_id", authoring_forms.RESULTS)
async def test_a_form_marks_its_tasks_in_the_database(dag_id: str, stack: DemoStack, runs: dict[str, RunKey]) -> None:
    (row,) = await fetch(stack, "SELECT data::text AS data FROM serialized_dag WHERE dag_id = $1", dag_id)
    serialized = json.loads(row["data"])
    assert authoring_forms.tasks_marked_by_params(serialized) == authoring_forms.PARAMS[dag_id]
    assert Graph.parse(row["data"]).marked_tasks == authoring_forms.RESULTS[dag_id].keys()
    tags = await fetch(stack, "SELECT name FROM dag_tag WHERE dag_id = $1 AND name LIKE 'stream-result:%'", dag_id)
    assert {tag["name"].removeprefix("stream-result:") for tag in tags} == authoring_forms.TAGGED[dag_id]


@pytest.mark.parametrize("dag_id", authoring_forms.RESULTS)
async def test_a_form_returns_its_results(dag_id: str, stack: DemoStack, runs: dict[str, RunKey]) -> None:
    async with sse(stack.server_url, runs[dag_id], timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    assert frames[-1]["outcome"] == "result", frames[-2:]
    assert frames[-2]["results"] == authoring_forms.RESULTS[dag_id]
    assert set(frames[0]["result_tasks"]) == authoring_forms.RESULTS[dag_id].keys()


@pytest.mark.parametrize("dag_id", NATIVE)
async def test_airflows_own_wait_returns_the_same(
    dag_id: str, airflow: AirflowRestClient, runs: dict[str, RunKey]
) -> None:
    native = await asyncio.to_thread(airflow.wait_at_airflow, *runs[dag_id])
    assert native == {"state": "success", "results": NATIVE[dag_id]}


async def test_what_a_branch_returns_is_not_stored(stack: DemoStack, airflow: AirflowRestClient) -> None:
    """This is why a task that can skip others is refused as a result task."""
    run_id = await asyncio.to_thread(airflow.trigger_run, "branch_returns")
    assert await asyncio.to_thread(airflow.wait_until_finished, "branch_returns", run_id) == "success"
    xcoms = "xcom_v2 AS x JOIN task_instance AS t ON t.id = x.task_instance_id" if HAS_LOOPS else "xcom"
    rows = await fetch(
        stack, f"SELECT task_id, key FROM {xcoms} WHERE dag_id = 'branch_returns' AND run_id = $1", run_id
    )
    assert {(row["task_id"], row["key"]) for row in rows} == {
        ("choose", "skipmixin_key"),
        ("go_on", "skipmixin_key"),
        ("chosen", "return_value"),
    }
