"""The TypeScript client against the server: after each failure, no frame is lost or delivered twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import ANSWER
from support.server import RunningServer, running_server
from support.streams import states
from support.stub_callers import CallerPermissions, StubPermissions, unsigned_jwt
from support.tcp_proxy import TcpProxy
from support.typescript import TypeScriptClient, run_typescript_client
from support.waiting import eventually_async

pytestmark = pytest.mark.parametrize("transport", ["sse", "websocket", "multiplex"])

EACH_STATE = ["scheduled", "queued", "running", "success"]


def arguments(port: int | None, transport: str, run: RunKey, **options: object) -> dict[str, object]:
    """Return the arguments of a client that streams until the end of the run."""
    client = {"baseUrl": f"http://127.0.0.1:{port}", "transport": transport, "auth": "none"}
    return {
        "client": client,
        "dagId": run.dag_id,
        "runId": run.run_id,
        "options": {"until": "run", **{name: value for name, value in options.items() if value is not None}},
    }


def distinct_frames(*clients: TypeScriptClient) -> list[dict[str, object]]:
    """Return the frames of clients that resumed one another's stream; assert that none was delivered twice."""
    frames = [frame for client in clients for frame in client.frames]
    seqs = [(frame["type"], frame["seq"]) for frame in frames if "seq" in frame]
    assert len(seqs) == len(set(seqs))
    return frames


async def test_stream_resumes_after_each_lost_connection(
    server: RunningServer, run: RunKey, airflow: AirflowSql, transport: str
) -> None:
    async with (
        TcpProxy.listen(urlsplit(server.url).port) as proxy,
        run_typescript_client(**arguments(proxy.port, transport, run)) as client,
    ):
        await client.until_frame("snapshot")
        for state in EACH_STATE:
            await airflow.set_task(run, "ask", state)
            await client.until_frame("task", task_id="ask", state=state)
            await proxy.cut_connections()
        await airflow.run_task(run, "answer", ANSWER)
        await client.until_frame("result")
        await airflow.set_run(run, "success")
        last = await client.end()
    frames = distinct_frames(client)
    assert states(frames, "ask") == EACH_STATE
    assert last["outcome"]["value"] == ANSWER
    assert last["view"]["run"]["state"] == "success"
    assert last["view"]["tasks"]["answer"]["state"] == "success"


async def test_another_client_resumes_from_the_bookmark_of_a_killed_one(
    server: RunningServer, run: RunKey, airflow: AirflowSql, transport: str
) -> None:
    port = urlsplit(server.url).port
    async with run_typescript_client(**arguments(port, transport, run)) as killed:
        await killed.until_frame("snapshot")
        await airflow.set_task(run, "ask", "scheduled")
        await killed.until_frame("task", task_id="ask")
        killed.kill()
    await airflow.set_task(run, "ask", "queued")
    await airflow.run_task(run, "answer", ANSWER)
    async with run_typescript_client(**arguments(port, transport, run, bookmark=killed.bookmark)) as client:
        await client.until_frame("result")
        await airflow.set_run(run, "success")
        last = await client.end()
    frames = distinct_frames(killed, client)
    assert [frame["type"] for frame in frames].count("snapshot") == 1
    assert states(frames, "ask") == ["scheduled", "queued"]
    assert states(frames, "answer")[-2:] == ["running", "success"]
    assert last["view"]["tasks"]["ask"]["state"] == "queued"
    assert last["outcome"]["value"] == ANSWER


async def test_stream_resumes_at_another_server(
    settings: Callable[..., Settings], run: RunKey, airflow: AirflowSql, transport: str
) -> None:
    async with AsyncExitStack() as life, running_server(settings()) as successor, TcpProxy.listen(None) as proxy:
        first = await life.enter_async_context(running_server(settings()))
        await eventually_async(lambda: first.hub.is_live and successor.hub.is_live)
        await proxy.switch_to(urlsplit(first.url).port)
        async with run_typescript_client(**arguments(proxy.port, transport, run)) as client:
            await client.until_frame("snapshot")
            await airflow.set_task(run, "ask", "scheduled")
            await client.until_frame("task", state="scheduled")
            await life.aclose()
            await airflow.set_task(run, "ask", "queued")
            await proxy.switch_to(urlsplit(successor.url).port)
            await client.until_frame("task", state="queued")
            await airflow.run_task(run, "answer", ANSWER)
            await airflow.set_run(run, "success")
            await client.end()
    assert states(distinct_frames(client), "ask") == ["scheduled", "queued"]


async def test_refusal_has_its_status_and_reason(server: RunningServer, run: RunKey, transport: str) -> None:
    unknown = RunKey(run.dag_id, "no_such_run")
    async with run_typescript_client(**arguments(urlsplit(server.url).port, transport, unknown)) as client:
        last = await client.end()
    error = last["outcome"]["error"]
    assert (error["code"], error["status"]) == ("refused", 404)
    assert "no_such_run" in error["message"]


@pytest.fixture
async def auth_server(settings: Callable[..., Settings], stub: AirflowStub) -> AsyncIterator[RunningServer]:
    """A server that checks permissions with Airflow, often."""
    configured = settings(airflow_url=stub.url, auth_cache=0.2, ping_interval="100ms")
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


async def test_expired_token_is_renewed_without_lost_frames(
    auth_server: RunningServer, stub: AirflowStub, run: RunKey, airflow: AirflowSql, transport: str
) -> None:
    old, new = CallerPermissions(), CallerPermissions(token=unsigned_jwt(sub="ada", exp=time.time() + 7200))
    stub.instead = StubPermissions(old, new)
    wanted = arguments(urlsplit(auth_server.url).port, transport, run) | {"tokens": [old.token, new.token]}
    async with run_typescript_client(**wanted) as client:
        await client.until_frame("snapshot")
        old.expire()
        await client.until(lambda line: line.get("state") == "resuming")
        await airflow.set_task(run, "ask", "scheduled")
        await client.until_frame("task", state="scheduled")
        await airflow.run_task(run, "answer", ANSWER)
        await airflow.set_run(run, "success")
        last = await client.end()
    assert states(distinct_frames(client), "ask") == ["scheduled"]
    assert last["outcome"]["value"] == ANSWER


async def test_expired_token_that_cannot_be_renewed_fails_the_stream(
    auth_server: RunningServer, stub: AirflowStub, run: RunKey, transport: str
) -> None:
    rights = CallerPermissions()
    stub.instead = StubPermissions(rights)
    wanted = arguments(urlsplit(auth_server.url).port, transport, run) | {"tokens": [rights.token]}
    async with run_typescript_client(**wanted) as client:
        await client.until_frame("snapshot")
        rights.expire()
        last = await client.end()
    assert last["outcome"]["error"]["code"] == "unauthenticated"


async def test_each_connection_gets_a_ticket(
    auth_server: RunningServer, stub: AirflowStub, run: RunKey, airflow: AirflowSql, transport: str
) -> None:
    rights = CallerPermissions()
    stub.instead = StubPermissions(rights)
    async with TcpProxy.listen(urlsplit(auth_server.url).port) as proxy:
        wanted = arguments(proxy.port, transport, run) | {"ticketsOf": rights.token}
        async with run_typescript_client(**wanted) as client:
            await client.until_frame("snapshot")
            await proxy.cut_connections()
            await airflow.set_task(run, "ask", "scheduled")
            await client.until_frame("task", state="scheduled")
            await airflow.run_task(run, "answer", ANSWER)
            await airflow.set_run(run, "success")
            await client.end()
