"""What the official client of the Model Context Protocol sees of runs: the same in each revision, at each server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mcp import Client, MCPError
from mcp_types import CallToolResult, ElicitRequestFormParams, ElicitResult
from starlette.responses import JSONResponse, Response

from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.chat_runs import begin_answer, fail_answer, retry_answer
from support.mcp_clients import client_of, link_of, text_of
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async


class Stage(NamedTuple):
    """A server with the tool `chat`, an Airflow, and the revision that clients speak."""

    url: str
    airflow: AirflowSql
    stub: AirflowStub
    permissions: StubPermissions
    revision: str

    @property
    def ada(self) -> CallerPermissions:
        return self.permissions.callers[0]

    @property
    def is_modern(self) -> bool:
        return self.revision != "legacy"

    def connect(
        self, caller: CallerPermissions | None = None, url: str = "", **options: Any
    ) -> AbstractAsyncContextManager[Client]:
        return client_of(url or self.url, (caller or self.ada).token, self.revision, **options)


class Call:
    """A call of the tool that is under way.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        self.progress: list[tuple[float, str | None]] = []
        self.task: asyncio.Task[CallToolResult] = asyncio.create_task(
            client.call_tool("chat", {"city": "Rome"}, progress_callback=self._on_progress)
        )

    async def _on_progress(self, progress: float, _total: float | None, message: str | None) -> None:
        self.progress.append((progress, message))

    async def reports(self, text: str) -> None:
        await eventually_async(lambda: any(text == one for _, one in self.progress), what=f"progress {text!r} comes")


async def get_an_early_result(stage: Stage) -> None:
    async with stage.connect() as client:
        call = Call(client)
        key = await begin_answer(stage.airflow, stage.stub)
        await call.reports("answer: running")
        await stage.airflow.push(key, "answer", {"text": "early"})
        result = await call.task
        assert (result.is_error, result.structured_content, text_of(result)) == (
            False,
            {"text": "early"},
            '{"text":"early"}',
        )
        numbers = [number for number, _ in call.progress]
        assert numbers == sorted(set(numbers))
        assert stage.stub.triggers[-1].json["conf"] == {"city": "Rome"}


async def cancel_a_call(stage: Stage) -> None:
    async with stage.connect() as client:
        call = Call(client)
        key = await begin_answer(stage.airflow, stage.stub)
        await call.reports("answer: running")
        call.task.cancel()
        await eventually_async(lambda: stage.stub.patches, what="the run is set to failed")
        assert stage.stub.patches[0].json == {"state": "failed"}
        assert key.run_id in stage.stub.patches[0].target


async def get_an_error(stage: Stage) -> None:
    async with stage.connect() as client:
        call = Call(client)
        await fail_answer(stage.airflow, await begin_answer(stage.airflow, stage.stub))
        result = await call.task
        assert result.is_error
        assert "task failed (task 'answer')" in text_of(result)
        state = await client.read_resource(link_of(result))
        assert '"state":"failed"' in state.contents[0].text


async def follow_a_retry(stage: Stage) -> None:
    """The value of the first try is no result, and the failed try is no error."""
    async with stage.connect() as client:
        call = Call(client)
        key = await begin_answer(stage.airflow, stage.stub, "first")
        await call.reports("answer: running")
        await retry_answer(stage.airflow, key, "second")
        assert text_of(await call.task) == "second"
        assert [text for _, text in call.progress].count("answer: running") == 2
    assert len(stage.stub.triggers) == 1


async def separate_two_users(stage: Stage) -> None:
    """The other user neither has the tool, nor can read a run of it, nor wait for one."""
    guest = CallerPermissions(token=unsigned_jwt(sub="guest", exp=2_000_000_000), known=())
    guest.of_dag["chat"] = refusal(403, "Forbidden")
    stage.permissions.callers.append(guest)
    async with stage.connect() as ada, stage.connect(guest) as client:
        call = Call(ada)
        key = await begin_answer(stage.airflow, stage.stub)
        await stage.airflow.push(key, "answer", "secret")
        assert text_of(await call.task) == "secret"
        assert [tool.name for tool in (await client.list_tools()).tools] == ["wait_for_dag_run"]
        uri = f"dag-run://{key.dag_id}/{key.run_id}"
        for request in (
            client.call_tool("chat", {}),
            client.read_resource(uri),
            client.read_resource(f"{uri}/result"),
        ):
            assert "secret" not in await _describe_refusal(request)
        waited = await client.call_tool("wait_for_dag_run", {"run": uri})
        assert waited.is_error
        assert "secret" not in str(waited)
    assert len(stage.stub.triggers) == 1
    stage.permissions.callers.remove(guest)


async def _describe_refusal(request: Awaitable[object]) -> str:
    try:
        answer = await request
    except MCPError as error:
        return str(error)
    raise AssertionError(f"the user gets {answer}")


async def lose_the_connection(stage: Stage) -> None:
    """Before revision 2026-07-28 the client continues; from then on a lost connection is a cancellation."""
    port = urlsplit(stage.url).port
    assert port is not None
    async with (
        TcpProxy.listen(port) as proxy,
        stage.connect(url=f"http://127.0.0.1:{proxy.port}") as client,
    ):
        call = Call(client)
        key = await begin_answer(stage.airflow, stage.stub)
        await call.reports("answer: running")
        await proxy.cut_connections()
        if stage.is_modern:
            await eventually_async(lambda: stage.stub.patches, what="the run is set to failed")
            await asyncio.wait([call.task])
            assert isinstance(call.task.exception(), MCPError)
        else:
            await stage.airflow.push(key, "answer", "still")
            assert text_of(await call.task) == "still"
            assert stage.stub.patches == []
    assert len(stage.stub.triggers) == 1


async def let_a_user_answer(stage: Stage) -> None:
    requests: list[ElicitRequestFormParams] = []

    async def answer(_context: object, params: ElicitRequestFormParams) -> ElicitResult:
        requests.append(params)
        return ElicitResult(action="accept", content={"chosen_options": "Approve", "reason": "fine"})

    airflow, received = stage.airflow, store_answers(stage)
    async with stage.connect(elicitation_callback=answer) as client:
        call = Call(client)
        key = await eventually_async(lambda: stage.stub.newest_run, what="a run is triggered")
        assert key is not None
        await airflow.set_run(key, "running")
        await airflow.start_task(key, "ask")
        reason = {"value": "", "description": "Why", "schema": {"type": "string"}}
        await airflow.request_input(key, "ask", params={"reason": reason})
        await airflow.set_task(key, "ask", "awaiting_input")
        await eventually_async(lambda: received, what="the answer reaches Airflow")
        await airflow.start_task(key, "answer")
        await airflow.push(key, "answer", "approved")
        assert text_of(await call.task) == "approved"
    (asks,) = requests
    assert asks.message == "Go on?"
    schema: Any = asks.requested_schema
    schema = schema if isinstance(schema, dict) else schema.model_dump(by_alias=True, exclude_none=True)
    assert schema["properties"]["chosen_options"]["enum"] == ["Approve", "Reject"]
    assert received[0].json["chosen_options"] == ["Approve"]
    assert received[0].json["params_input"] == {"reason": "fine"}
    assert stage.stub.patches == received, "the run is not cancelled between the two responses"
    stage.stub.instead = stage.permissions


def store_answers(stage: Stage) -> list[ReceivedRequest]:
    """Let the stub store answers to requests for human input, and return the list of those that it gets."""
    answers: list[ReceivedRequest] = []

    async def respond(received: ReceivedRequest) -> Response | None:
        if received.method != "PATCH" or "hitlDetails" not in received.target:
            return await stage.permissions(received)
        assert stage.stub.newest_run is not None
        await stage.airflow.answer_input(stage.stub.newest_run, "ask", *received.json["chosen_options"])
        answers.append(received)
        user = {"id": "ada", "name": "Ada"}
        return JSONResponse({"responded_by": user, "responded_at": "2026-11-30T12:00:00Z", **received.json})

    stage.stub.instead = respond
    return answers


SCENARIOS: tuple[Callable[[Stage], Awaitable[None]], ...] = (
    get_an_early_result,
    cancel_a_call,
    get_an_error,
    follow_a_retry,
    separate_two_users,
    lose_the_connection,
    let_a_user_answer,
)
