"""The official client of the Model Context Protocol calls DAGs of a real Airflow."""

from __future__ import annotations

import asyncio
import json

import pytest
from mcp import Client, StdioServerParameters

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.command import format_mcp_configuration
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from support.mcp_clients import REVISIONS, client_of, text_of
from support.waiting import eventually

RUN_SECONDS = 60.0
DAG_ID = "chat_answer"
WITHOUT_TEARDOWN = "mapped_squares"
ANSWER = "Air scatters blue light more than red."


@pytest.fixture(scope="module", autouse=True)
def dags(stack: DemoStack) -> None:
    """Wait until Airflow has parsed the DAGs of these tests."""
    stack.airflow.wait_for_dags([DAG_ID, WITHOUT_TEARDOWN], ConsoleReporter())


def newest_run(airflow: AirflowRestClient, dag_id: str) -> dict[str, str]:
    path = f"/dags/{dag_id}/dagRuns?order_by=-id&limit=1"
    run: dict[str, str] = airflow.request("GET", path).json()["dag_runs"][0]
    return run


@pytest.mark.parametrize("revision", REVISIONS)
async def test_the_result_comes_while_the_run_is_running(
    auth_server: StreamServerProcess, token: str, airflow: AirflowRestClient, revision: str
) -> None:
    async with client_of(auth_server.url, token, revision) as client:
        (tool,) = [one for one in (await client.list_tools()).tools if one.name == DAG_ID]
        question = {"type": "string", "default": "Why is the sky blue?"}
        assert tool.input_schema["properties"]["question"] == question
        assert "required" not in tool.input_schema
        assert (tool.description or "").startswith("A chain of tasks whose result is available before the teardown")
        assert (tool.output_schema or {})["required"] == ["answer"]
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        result = await client.call_tool(DAG_ID, {"question": "Why is the sky blue?", "teardown_seconds": 4})
        assert result.structured_content == {"question": "Why is the sky blue?", "answer": ANSWER}
    assert newest_run(airflow, DAG_ID)["state"] == "running"


async def test_a_cancelled_call_sets_the_run_to_failed(
    auth_server: StreamServerProcess, token: str, airflow: AirflowRestClient
) -> None:
    async with client_of(auth_server.url, token, "legacy") as client:
        begun = asyncio.Event()

        async def on_progress(_progress: float, _total: float | None, _message: str | None) -> None:
            begun.set()

        # Airflow lets a run with a teardown continue, and its other tasks may decide on its state.
        call = asyncio.create_task(client.call_tool(WITHOUT_TEARDOWN, {}, progress_callback=on_progress))
        await asyncio.wait_for(begun.wait(), RUN_SECONDS)
        call.cancel()
        run_id = newest_run(airflow, WITHOUT_TEARDOWN)["dag_run_id"]

        def has_failed() -> bool:
            return bool(airflow.get_run(WITHOUT_TEARDOWN, run_id)["state"] == "failed")

        await asyncio.to_thread(eventually, has_failed, RUN_SECONDS, "the run is failed")


async def test_the_configuration_that_the_demo_prints_works(auth_server: StreamServerProcess, token: str) -> None:
    server = json.loads(format_mcp_configuration(auth_server.url, token))["mcpServers"]["airflow"]
    async with Client(StdioServerParameters(**server)) as client:
        assert text_of(await client.call_tool(WITHOUT_TEARDOWN, {"numbers": [3, 4]})) == "[9,16]"
        refused = await client.call_tool(WITHOUT_TEARDOWN, {"numbers": "none"})
        assert refused.is_error
        assert "numbers" in text_of(refused)
