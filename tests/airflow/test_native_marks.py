"""Airflow's own result marks. 3.4 stores them; before, they are known after the first run of a version."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.airflow_version import HAS_LOOPS
from support.streams import sse, types

RUN_SECONDS = 60.0

STATES = ("running", "running") if HAS_LOOPS else ("success", "running")
"""State of the first and of the second run of a version when the result comes."""

RESULTS = {"left": "left", "right": "right"}


@pytest.fixture(scope="module", autouse=True)
def dags(stack: DemoStack) -> None:
    """Wait until Airflow has parsed the DAGs of these tests."""
    stack.airflow.wait_for_dags(["native_marks_streamed", "native_marks_called"], ConsoleReporter())


async def wait_natively(airflow: AirflowRestClient, key: RunKey) -> dict[str, Any]:
    return await asyncio.to_thread(airflow.wait_at_airflow, *key)


@pytest.mark.core
async def test_a_stream_has_one_result_with_the_tasks_of_airflows_own_wait(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    for state in STATES:
        key = RunKey("native_marks_streamed", await asyncio.to_thread(airflow.trigger_run, "native_marks_streamed"))
        async with (
            sse(stack.server_url, key, timeout=RUN_SECONDS) as short,
            sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as long,
        ):
            until_result, until_run = await asyncio.gather(short.rest(RUN_SECONDS), long.rest(RUN_SECONDS))
        assert types(until_result)[-2:] == ["result", "end"]
        assert until_result[-1]["state"] == state
        assert until_run[-1]["state"] == "success"
        for frames in (until_result, until_run):
            assert [frame["results"] for frame in frames if frame["type"] == "result"] == [RESULTS]
            assert "reset" not in types(frames)
        assert await wait_natively(airflow, key) == {"state": "success", "results": RESULTS}


async def test_a_call_returns_the_tasks_of_airflows_own_wait(
    stack: DemoStack, airflow: AirflowRestClient, token: str
) -> None:
    path = "/api/v2/dags/native_marks_called/dagRuns?wait_for_completion=true&timeout=60s"
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.server_url, headers=headers, timeout=RUN_SECONDS) as caller:
        for state in STATES:
            answer = await caller.post(path, json={})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            assert (body["outcome"], body["state"], body["results"]) == ("result", state, RESULTS)
            key = RunKey("native_marks_called", body["dag_run_id"])
            assert await wait_natively(airflow, key) == {"state": "success", "results": RESULTS}
