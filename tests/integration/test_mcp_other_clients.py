"""FastMCP, and the command line of the inspector, as clients of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support import node
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import begin_answer, fail_answer
from support.server import RunningServer
from support.streams import DEADLINE
from support.stub_callers import CallerPermissions
from support.waiting import eventually_async

INSPECTOR = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub is a tool."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")


async def test_fastmcp(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    """One test for all: the import of FastMCP takes longer than the calls."""
    fastmcp = pytest.importorskip("fastmcp", reason="FastMCP needs Python 3.11")
    seen: list[str | None] = []

    async def on_progress(_progress: float, _total: float | None, message: str | None) -> None:
        seen.append(message)

    async with fastmcp.Client(f"{auth_server.url}/mcp", auth=ada.token, progress_handler=on_progress) as client:
        assert [tool.name for tool in await client.list_tools()] == ["chat", "wait_for_dag_run"]

        call = asyncio.create_task(client.call_tool("chat", {"city": "Rome"}))
        key = await begin_answer(airflow, stub)
        await eventually_async(lambda: "answer: running" in seen, what="progress is reported")
        await airflow.push(key, "answer", {"text": "early"})
        assert (await call).structured_content == {"text": "early"}

        stub.received.clear()
        call = asyncio.create_task(client.call_tool("chat", {}, raise_on_error=False))
        await fail_answer(airflow, await begin_answer(airflow, stub))
        result = await call
        assert (result.is_error, "task failed (task 'answer')" in result.content[0].text) == (True, True)

        stub.received.clear()
        call = asyncio.create_task(client.call_tool("chat", {}))
        await begin_answer(airflow, stub)
        call.cancel()
        await eventually_async(lambda: stub.patches, what="the run is set to failed")
    await wait_for_cancellation_decision()


async def test_the_inspector(auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub) -> None:
    stub.then = complete_run
    address = f"{auth_server.url}/mcp"
    listed, called = await asyncio.gather(
        inspect(address, ada, "--method", "tools/list", "--strict"),
        inspect(address, ada, "--method", "tools/call", "--tool-name", "chat", "--tool-arg", "city=Rome"),
    )
    assert [tool["name"] for tool in listed["tools"]] == ["chat", "wait_for_dag_run"]
    assert called["structuredContent"] == {"text": "because"}
    assert stub.triggers[0].json["conf"] == {"city": "Rome"}


async def inspect(address: str, caller: CallerPermissions, *arguments: str) -> Any:
    """Return what the inspector prints."""
    clients = await asyncio.to_thread(node.installed_clients)
    process = await asyncio.create_subprocess_exec(
        *(node.node(), str(clients / INSPECTOR), "--cli", address, "--transport", "http"),
        *("--header", f"Authorization: Bearer {caller.token}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 3 * DEADLINE)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
