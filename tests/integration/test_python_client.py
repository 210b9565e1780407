"""`Client` and `AsyncClient` against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from stream_server.client import (
    AsyncClient,
    Conflict,
    InvalidRequest,
    NotFound,
    Outcome,
    RequestTimeout,
    RunFailed,
    ServerError,
    SeveralResults,
    Unauthenticated,
    WaitTimeout,
)
from stream_server.client.frames import Chunk, Failure, Result, RunTransition, TaskTransition
from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, TruncatedResponse
from support.airflow_stub_fixtures import ANSWER, complete_run
from support.python_clients import DrivenClient, names, python_client
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions
from support.waiting import eventually_async

TOKEN = "the-secret-of-ada"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(kind: str, trigger_server: RunningServer) -> AsyncIterator[DrivenClient]:
    async with python_client(kind, trigger_server.url, token=TOKEN, patience=5.0) as client:
        yield client


async def read_run_ids(airflow: AirflowSql) -> list[str]:
    return [row["run_id"] for row in await airflow.connection.fetch("SELECT run_id FROM dag_run")]


async def test_trigger_returns_a_run_whose_result_can_be_awaited(
    client: DrivenClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    run = await client.call("trigger", "chat", {"question": "Why?"}, note="from a test")
    assert [run.run_id] == await read_run_ids(airflow)
    assert (stub.triggers[0].json["conf"], stub.triggers[0].json["note"]) == ({"question": "Why?"}, "from a test")
    waiting = asyncio.create_task(client.call("result", on=run, timeout=10))
    await complete_run(airflow, RunKey("chat", run.run_id))
    assert await waiting == ANSWER
    outcome = await client.call("wait", "chat", run.run_id, until="run")
    assert (outcome.state, outcome.outcome, outcome.results) == ("success", "result", {"answer": ANSWER})
    with pytest.raises(SeveralResults, match="answer, ask"):
        await client.call("result", on=run, results=["ask", "answer"])


async def test_run_streams_a_new_run_to_its_end(client: DrivenClient, stub: AirflowStub) -> None:
    async def emit_and_complete(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.run_task(key, "ask", 1)
        await airflow.start_task(key, "answer")
        await airflow.emit_output(key, "answer", 0, "Be", "cause", {"chunk": ["JSON", None]})
        await complete_run(airflow, key)

    stub.then = emit_and_complete
    stream = client.client.run("chat", {"question": "Why?"}, until="run")
    frames = await client.rest(stream)
    assert names(frames)[0] == "Snapshot"
    assert names(frames)[-1] == "End"
    assert [frame.value for frame in frames if isinstance(frame, Chunk)] == ["Be", "cause", ["JSON", None]]
    assert [frame.results for frame in frames if isinstance(frame, Result)] == [{"answer": ANSWER}]
    assert stream.view.text == "Because"
    assert stream.outcome.value == ANSWER
    assert stream.run.run_id == frames[0].run_id
    assert "<table>" in stream._repr_mimebundle_()["text/html"]


async def test_a_failed_run_is_an_exception_of_its_own(client: DrivenClient, airflow: AirflowSql) -> None:
    run = await client.call("trigger", "chat")
    key = RunKey("chat", run.run_id)
    await airflow.start_task(key, "ask")
    await airflow.set_task(key, "ask", "failed")
    with pytest.raises(RunFailed, match="task failed in task 'ask'") as failed:
        await client.call("result", on=run, timeout=10)
    assert (failed.value.reason, failed.value.task_id, failed.value.state) == ("task_failed", "ask", "failed")
    outcome = await client.call("wait", on=run)
    assert outcome.failure.task_id == "ask"
    frames = await client.rest(run.stream())
    assert [frame.task_id for frame in frames if isinstance(frame, Failure)] == ["ask"]


async def test_errors_have_classes_by_status(client: DrivenClient) -> None:
    with pytest.raises(NotFound, match="has no run 'r7'") as missing:
        await client.call("wait", "chat", "r7")
    assert missing.value.problem_type == "urn:stream-server:problem:run-not-found"
    with pytest.raises(NotFound):
        await client.next(client.client.stream("chat", "r7"))
    with pytest.raises(InvalidRequest, match="`type`"):
        await client.next(client.client.runs(types="nonsense"))
    run = await client.call("trigger", "chat", run_id="order-42")
    with pytest.raises(Conflict):
        await client.call("trigger", "chat", run_id="order-42")
    attached = await client.call("trigger", "chat", run_id="order-42", attach=True)
    assert (attached.run_id, run.run_id) == ("order-42", "order-42")


async def test_a_wait_ends_after_its_timeout(client: DrivenClient) -> None:
    run = await client.call("trigger", "chat")
    with pytest.raises(WaitTimeout, match=r"has no outcome after 0\.1 s; its state is queued") as late:
        await client.call("wait", on=run, timeout=0.1)
    assert isinstance(late.value, TimeoutError)


async def test_a_call_whose_response_was_lost_starts_no_second_run(
    client: DrivenClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    async def lose_first(_session: AirflowSql, _key: RunKey) -> Response | None:
        return TruncatedResponse() if len(stub.triggers) == 1 else None

    stub.then = lose_first
    run = await client.call("trigger", "chat")
    assert len(stub.triggers) > 1
    assert await read_run_ids(airflow) == [run.run_id]
    stub.received.clear()
    frame = await client.next(client.client.run("chat"))
    assert sorted(await read_run_ids(airflow)) == sorted([run.run_id, frame.run_id])
    # Two calls are two runs, and calls with one key are one.
    keyed = [await client.call("trigger", "chat", idempotency_key="order-7") for _ in range(2)]
    assert len({each.run_id for each in keyed}) == 1
    assert len(await read_run_ids(airflow)) == 3


async def test_a_refusal_of_airflow_is_raised(client: DrivenClient, stub: AirflowStub) -> None:
    async def refuse(received: ReceivedRequest) -> Response | None:
        return JSONResponse({"detail": "DAG is broken"}, 400) if received.method == "POST" else None

    stub.instead = refuse
    with pytest.raises(Exception, match="DAG is broken") as refused:
        await client.call("trigger", "chat")
    assert refused.value.status == 400  # type: ignore[attr-defined]
    assert len(stub.triggers) == 1


async def test_cancel_sets_a_run_to_failed(client: DrivenClient) -> None:
    run = await client.call("trigger", "chat")
    assert await client.call("cancel", on=run) == "failed"
    with pytest.raises(RunFailed, match="run failed"):
        await client.call("result", on=run, timeout=10)


async def test_many_runs_are_streamed_and_resumed(client: DrivenClient, airflow: AirflowSql) -> None:
    first = await client.call("trigger", "chat")
    stream = client.client.runs(dag_ids="chat", types=["task", "run"], task_ids="ask")
    reading = asyncio.create_task(client.until(stream, TaskTransition))
    await eventually_async(lambda: stream.cursor is not None, what="the stream has begun")
    await airflow.set_task(RunKey("chat", first.run_id), "ask", "scheduled")
    assert [(frame.run_id, frame.state) for frame in await reading] == [(first.run_id, "scheduled")]
    cursor = stream.cursor
    await client.call("close", on=stream)
    await airflow.set_task(RunKey("chat", first.run_id), "ask", "queued")
    again = client.client.runs(dag_ids="chat", types=["task", "run"], task_ids="ask", cursor=cursor)
    frames = await client.until(again, TaskTransition)
    assert (names(frames), frames[-1].state) == (["Resumed", "TaskTransition"], "queued")
    await client.call("close", on=again)


async def test_one_hundred_calls_wait_at_once(trigger_server: RunningServer, airflow: AirflowSql) -> None:
    async with AsyncClient(trigger_server.url, token=TOKEN) as client:
        run = await client.trigger("chat")
        key = RunKey("chat", run.run_id)
        waits = [asyncio.create_task(client.wait(*key, timeout=30)) for _ in range(100)]
        await eventually_async(lambda: trigger_server.watcher_count(key) == 100, what="100 calls wait")
        await complete_run(airflow, key)
        outcomes: list[Outcome] = await asyncio.gather(*waits)
    assert [outcome.value for outcome in outcomes] == [ANSWER] * 100


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
async def test_a_client_of_either_library_may_be_passed(
    library: str, kind: str, trigger_server: RunningServer, stub: AirflowStub
) -> None:
    module: Any = pytest.importorskip(library)
    stub.then = complete_run
    passed = module.Client() if kind == "sync" else module.AsyncClient()
    async with python_client(kind, trigger_server.url, token=TOKEN, http_client=passed) as client:
        assert await client.call("result", on=client.client.run("chat")) == ANSWER
    assert not passed.is_closed
    if kind == "sync":
        passed.close()
    else:
        await passed.aclose()


async def test_tokens_are_renewed_by_a_function(
    kind: str, auth_server: RunningServer, permissions: StubPermissions, ada: CallerPermissions, key: RunKey
) -> None:
    tokens = ["expired", ada.token, "unused"]
    async with python_client(kind, auth_server.url, token=lambda: tokens.pop(0), patience=5) as client:
        waits = [client.call("wait", *key, timeout=0.1) for _ in range(3)]
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WaitTimeout] * 3
        assert tokens == ["unused"]
    async with python_client(kind, auth_server.url, token="expired", patience=5) as client:
        with pytest.raises(Unauthenticated):
            await client.call("wait", *key)
        with pytest.raises(Unauthenticated):
            await client.next(client.client.stream(*key))


async def test_a_stream_whose_token_is_revoked_continues_with_another_one(
    kind: str,
    auth_server: RunningServer,
    permissions: StubPermissions,
    ada: CallerPermissions,
    airflow: AirflowSql,
    key: RunKey,
) -> None:
    second = CallerPermissions(token="second-token")
    permissions.callers.append(second)
    tokens = [ada.token, "second-token"]
    async with python_client(kind, auth_server.url, token=lambda: tokens.pop(0), patience=10) as client:
        stream = client.client.stream(*key, until="run")
        assert names([await client.next(stream)]) == ["Snapshot"]
        ada.expire()
        await eventually_async(lambda: not auth_server.subscriptions(), what="the server closes the stream")
        await complete_run(airflow, key)
        frames = await client.rest(stream)
    assert names(frames)[0] == "Resumed"
    assert names(frames)[-1] == "End"
    seqs = [frame.seq for frame in frames if isinstance(frame, (TaskTransition, RunTransition))]
    assert len(seqs) == len(set(seqs))


async def test_a_server_without_an_answer_raises_a_timeout(trigger_server: RunningServer, stub: AirflowStub) -> None:
    async def hang(_received: ReceivedRequest) -> None:
        await stub.hang()

    stub.instead = hang
    async with python_client("sync", trigger_server.url, token=TOKEN, timeout=0.1, patience=0.3) as client:
        with pytest.raises(RequestTimeout, match=r"no connection to http://127\.0\.0\.1:"):
            await client.call("cancel", "chat", "r1")


async def test_a_server_without_airflow_refuses_to_trigger(settings: Callable[..., Settings]) -> None:
    async with running_server(settings()) as server, python_client("sync", server.url) as client:
        with pytest.raises(ServerError) as refused:
            await client.call("trigger", "chat")
    assert refused.value.status == 501
