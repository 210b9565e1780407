"""The npm package `openai`, as DAGs answer it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from stream_server.http.openai import endpoints
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import ask_human, begin_answer, fail_answer, retry_answer
from support.node_clients import ClientProcess, run_node
from support.server import RunningServer
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

SCRIPT = "openai.js"


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub answers questions."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")


async def expect(script: ClientProcess, *lines: dict[str, object]) -> None:
    for line in lines:
        assert await script.next() == line


async def test_a_stream_is_read_to_its_end(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, "stream") as script:
        await expect(script, {"type": "models", "ids": ["chat"]})
        key = await begin_answer(airflow, stub, "Be")
        await expect(script, {"type": "text", "text": "Be"})
        await airflow.emit_output(key, "answer", 1, "cause")
        await airflow.push(key, "answer", "Because")
        await expect(script, {"type": "text", "text": "cause"}, {"type": "closed"})


async def test_an_answer_comes_whole(auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub) -> None:
    stub.then = complete_run
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, "whole") as script:
        await expect(script, {"type": "models", "ids": ["chat"]}, {"type": "text", "text": "because"})


async def test_an_abort_cancels_the_run(
    auth_server: RunningServer,
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "GRACE", 0.02)
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, "abort") as script:
        await begin_answer(airflow, stub, "Be")
        await expect(script, {"type": "models", "ids": ["chat"]}, {"type": "text", "text": "Be"}, {"type": "closed"})
        await eventually_async(lambda: stub.patches, what="the run is set to failed")
    await wait_for_cancellation_decision()


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("stream", {"type": "error", "name": "APIError", "code": "task_failed"}),
        ("whole", {"type": "error", "name": "InternalServerError", "code": "task_failed", "status": 502}),
    ],
)
async def test_a_failing_run_is_an_error_and_the_only_run(
    auth_server: RunningServer,
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    mode: str,
    error: dict[str, object],
) -> None:
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, mode) as script:
        await expect(script, {"type": "models", "ids": ["chat"]})
        await fail_answer(airflow, await begin_answer(airflow, stub))
        await expect(script, error, {"type": "closed"})
    assert len(stub.triggers) == 1


async def test_a_wrong_key_is_an_authentication_error(auth_server: RunningServer) -> None:
    async with run_node(SCRIPT, f"{auth_server.url}/v1", "wrong", "stream") as script:
        line = await script.next()
    assert (line["name"], line["status"]) == ("AuthenticationError", 401)


async def test_a_retried_task_restarts_the_answer_and_a_human_is_waited_for(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, "stream") as script:
        key = await begin_answer(airflow, stub, "Because")
        await expect(script, {"type": "models", "ids": ["chat"]}, {"type": "text", "text": "Because"})
        await ask_human(airflow, key)
        await airflow.answer_input(key, "ask", "Approve")
        await retry_answer(airflow, key, "Bees")
        await expect(script, {"type": "text", "text": "\n\nBees"}, {"type": "closed"})


async def test_a_lost_connection_is_retried_and_starts_no_second_run(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with (
        TcpProxy.listen(urlsplit(auth_server.url).port) as proxy,
        run_node(SCRIPT, f"http://127.0.0.1:{proxy.port}/v1", ada.token, "whole") as script,
    ):
        await expect(script, {"type": "models", "ids": ["chat"]})
        key = await begin_answer(airflow, stub, "Be")
        await proxy.cut_connections()
        await eventually_async(lambda: len(stub.triggers) == 2, what="the client has sent its request again")
        await airflow.push(key, "answer", "Because")
        await expect(script, {"type": "text", "text": "Because"}, {"type": "closed"})
    assert await airflow.connection.fetchval("SELECT count(*) FROM dag_run WHERE dag_id = 'chat'") == 1


async def test_a_server_that_drains_ends_the_answer_with_an_error(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(SCRIPT, f"{auth_server.url}/v1", ada.token, "stream") as script:
        await begin_answer(airflow, stub, "Be")
        await expect(script, {"type": "models", "ids": ["chat"]}, {"type": "text", "text": "Be"})
        await auth_server.hub.drain(5)
        await expect(script, {"type": "error", "name": "APIError", "code": "stream_draining"}, {"type": "closed"})
    assert (len(stub.triggers), stub.patches) == (1, [])


async def test_a_user_without_rights_has_no_model(
    auth_server: RunningServer, permissions: StubPermissions, stub: AirflowStub
) -> None:
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with run_node(SCRIPT, f"{auth_server.url}/v1", bob.token, "stream") as script:
        error = {"type": "error", "name": "NotFoundError", "code": "model_not_found", "status": 404}
        await expect(script, {"type": "models", "ids": []}, error, {"type": "closed"})
    assert stub.triggers == []
