"""DAGs as tools, as the official client of the Model Context Protocol uses them, in both revisions."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

import pytest
from mcp import Client, MCPError, StdioServerParameters

from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import begin_answer
from support.mcp_clients import REVISIONS, client_of, link_of, text_of
from support.server import RunningServer, running_server
from support.streams import DEADLINE
from support.stub_callers import CallerPermissions, StubPermissions
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

LONG_TEXT = "word " * 20_000

PARAMS = """
    [["city", {"default": "Rome", "description": "City", "schema": {"__type": "dict", "__var": {"type": "string"}}}],
     ["days", {"default": null, "schema": {"__type": "dict", "__var": {"type": "integer"}}}]]
"""
"""Member `params` of a serialised DAG."""

Connect: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
async def tools(auth_server: RunningServer, airflow: AirflowSql, stub: AirflowStub) -> RunningServer:
    """A server with a DAG that is a tool."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")
    return auth_server


@pytest.fixture(params=REVISIONS)
def connect(request: pytest.FixtureRequest, tools: RunningServer, ada: CallerPermissions) -> Connect:
    """Opens clients that speak one of the revisions. They must be closed by the task that has opened them."""
    return partial(client_of, tools.url, ada.token, request.param)


def port_of(server: RunningServer) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


async def test_a_call_returns_the_result(connect: Connect, stub: AirflowStub) -> None:
    async with connect() as client:
        stub.then = complete_run
        result = await client.call_tool("chat", {"city": "Rome"})
        assert (result.is_error, result.structured_content) == (False, {"text": "because"})
        assert text_of(result) == '{"text":"because"}'
        assert stub.triggers[0].json["conf"] == {"city": "Rome"}


async def test_tools_describe_dags(connect: Connect, airflow: AirflowSql) -> None:
    async with connect() as client:
        await airflow.connection.execute(
            "UPDATE serialized_dag SET data = jsonb_set(jsonb_set(data::jsonb, '{dag,params}', $1::text::jsonb),"
            " '{dag,doc_md}', to_jsonb($2::text))::json WHERE dag_id = 'chat'",
            PARAMS,
            'Forecasts.\n\n```json output-schema\n{"type": "object"}\n```\n',
        )
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool:read-only')")
        tool, wait = (await client.list_tools()).tools
        assert (tool.name, tool.description, wait.name) == ("chat", "Forecasts.", "wait_for_dag_run")
        assert tool.input_schema == {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City", "default": "Rome"},
                "days": {"type": "integer"},
            },
            "required": ["days"],
            "additionalProperties": False,
        }
        assert tool.output_schema == {"type": "object"}
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is True


async def test_large_results_are_cut(connect: Connect, airflow: AirflowSql, stub: AirflowStub) -> None:
    async with connect() as client:
        call = asyncio.create_task(client.call_tool("chat", {}))
        await airflow.push(await begin_answer(airflow, stub), "answer", LONG_TEXT)
        result = await call
        assert len(text_of(result)) < 3000
        assert f"of {len(LONG_TEXT)} bytes" in text_of(result)
        whole = await client.read_resource(link_of(result))
        assert whole.contents[0].text == f'"{LONG_TEXT}"'


async def test_a_long_run_is_waited_for_again(
    settings: Callable[..., Settings],
    ada: CallerPermissions,
    permissions: StubPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
) -> None:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")
    async with running_server(settings(airflow_url=stub.url, mcp_wait="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_of(server.url, ada.token, "2026-07-28") as client:
            result = await client.call_tool("chat", {})
            assert "continues. Call wait_for_dag_run" in text_of(result)
            assert stub.patches == []
            key = await begin_answer(airflow, stub)
            await airflow.push(key, "answer", "at last")
            again = await client.call_tool("wait_for_dag_run", {"run": link_of(result)})
            assert text_of(again) == "at last"
            await wait_for_cancellation_decision()
            assert stub.patches == []


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_call_continues_at_another_server(
    tools: RunningServer,
    settings: Callable[..., Settings],
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    revision: str,
) -> None:
    async with running_server(settings(airflow_url=stub.url)) as other, TcpProxy.listen(port_of(tools)) as proxy:
        await eventually_async(lambda: other.hub.is_live)
        async with client_of(f"http://127.0.0.1:{proxy.port}", ada.token, revision) as client:
            call = asyncio.create_task(client.call_tool("chat", {}))
            key = await begin_answer(airflow, stub)
            await eventually_async(lambda: tools.hub.is_watched(key), what="the call is watched")
            await proxy.switch_to(port_of(other), cut=False)
            await tools.hub.drain(5)
            await airflow.push(key, "answer", "still")
            assert text_of(await call) == "still"
    assert len(stub.triggers) == 1
    assert stub.patches == []


async def test_errors_that_an_agent_can_correct_are_results(
    connect: Connect, ada: CallerPermissions, airflow: AirflowSql
) -> None:
    async with connect() as client:
        with pytest.raises(MCPError, match="no tool 'nothing'"):
            await client.call_tool("nothing", {})
        await airflow.connection.execute("UPDATE dag SET is_paused = true WHERE dag_id = 'chat'")
        paused = await client.call_tool("chat", {})
        assert paused.is_error
        assert "is paused" in text_of(paused)
        ada.forbid()
        await asyncio.sleep(0)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_program_offers_the_tools_on_its_standard_streams(
    tools: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, revision: str
) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "stream_server", "mcp", "--url", tools.url],
        env={"STREAM_SERVER_TOKEN": ada.token},
    )
    async with Client(command, mode=revision) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["chat", "wait_for_dag_run"]
        stub.then = complete_run
        assert text_of(await client.call_tool("chat", {})) == '{"text":"because"}'
        stub.then = None
        stub.received.clear()
        call = asyncio.create_task(client.call_tool("chat", {}))
        await begin_answer(airflow, stub)
        call.cancel()
        await eventually_async(lambda: stub.patches, what="the run is set to failed")
    await wait_for_cancellation_decision()


async def test_the_program_resumes_a_response_that_is_cut(
    tools: RunningServer,
    settings: Callable[..., Settings],
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
) -> None:
    async with running_server(settings(airflow_url=stub.url)) as other, TcpProxy.listen(port_of(tools)) as proxy:
        await eventually_async(lambda: other.hub.is_live)
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "stream_server", "mcp", "--url", f"http://127.0.0.1:{proxy.port}"],
            env={"STREAM_SERVER_TOKEN": ada.token},
        )
        async with Client(command, mode="legacy") as client:
            seen: list[str | None] = []

            async def on_progress(_progress: float, _total: float | None, message: str | None) -> None:
                seen.append(message)

            call = asyncio.create_task(client.call_tool("chat", {}, progress_callback=on_progress))
            key = await begin_answer(airflow, stub)
            await eventually_async(lambda: seen, what="progress is reported")
            await proxy.switch_to(port_of(other))
            await airflow.push(key, "answer", "still")
            assert text_of(await call) == "still"


async def test_the_program_survives_lines_that_are_no_messages(tools: RunningServer, ada: CallerPermissions) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "mcp", "--url", tools.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "STREAM_SERVER_TOKEN": ada.token},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = [
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"id":[1],"method":"ping"}',
        b"\xff",
        b'{"jsonrpc":"2.0","id":5,"method":"ping"}',
    ]
    process.stdin.write(b"\n".join([*lines, b""]))
    answers = [json.loads(await asyncio.wait_for(process.stdout.readline(), DEADLINE)) for _ in lines]
    assert [answer.get("error", {}).get("code") for answer in answers] == [*[-32700] * 5, None]
    assert answers[-1] == {"jsonrpc": "2.0", "id": 5, "result": {}}
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
