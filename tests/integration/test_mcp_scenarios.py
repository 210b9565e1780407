"""Scenarios of the official client of the Model Context Protocol, at one process and at two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import wait_for_cancellation_decision
from support.chat_runs import begin_answer
from support.mcp_clients import REVISIONS, text_of
from support.mcp_scenarios import SCENARIOS, Call, Stage
from support.multi_process_server import START, MultiProcessServer
from support.server import RunningServer, server_process
from support.stub_callers import StubPermissions
from support.waiting import eventually_answered


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub is a tool."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_one_process_plays_each_scenario(
    auth_server: RunningServer,
    airflow: AirflowSql,
    stub: AirflowStub,
    permissions: StubPermissions,
    scenario: Callable[[Stage], Awaitable[None]],
    revision: str,
) -> None:
    await scenario(Stage(auth_server.url, airflow, stub, permissions, revision))
    await wait_for_cancellation_decision()


async def test_two_workers_play_all_scenarios(
    journal: str, airflow: AirflowSql, stub: AirflowStub, permissions: StubPermissions, unused_tcp_port: int
) -> None:
    command = ("--port", str(unused_tcp_port), "--workers", "2", "--airflow-url", stub.url, "--grace-period", "5s")
    async with server_process(*command, STREAM_SERVER_DATABASE_URL=journal) as process:
        server = MultiProcessServer(process, f"http://127.0.0.1:{unused_tcp_port}", None)
        reading = asyncio.create_task(server.read_log())
        await server.wait_until_ready()
        for revision in REVISIONS:
            stage = Stage(server.url, airflow, stub, permissions, revision)
            for scenario in SCENARIOS:
                stub.received.clear()
                await scenario(stage)
            await continue_while_workers_stop(stage, server)
        process.terminate()
        await asyncio.wait_for(process.wait(), START)
        await reading
    assert "Traceback" not in "".join(server.log), server.log


async def continue_while_workers_stop(stage: Stage, server: MultiProcessServer) -> None:
    """Each worker drains in turn, so that the call goes on at the other one, or at its successor."""
    stage.stub.received.clear()
    async with stage.connect() as client:
        call = Call(client)
        key = await begin_answer(stage.airflow, stage.stub)
        await call.reports("answer: running")
        for worker in server.workers():
            before = {one.pid for one in server.workers()}
            worker.terminate()

            async def is_replaced(before: set[int] = before) -> bool:
                return {one.pid for one in server.workers()} != before and await server.is_ready()

            await eventually_answered(is_replaced, START, "the worker is replaced")
        await stage.airflow.push(key, "answer", "still")
        assert text_of(await call.task) == "still"
    assert len(stage.stub.triggers) == 1
    assert stage.stub.patches == []
