"""The real client of OpenAI, as DAGs answer it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from starlette.responses import Response

from stream_server.domain.run_state import RunKey
from stream_server.http.openai import endpoints
from stream_server.http.openai.response_objects import encode_response_id
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, TruncatedResponse
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import AGENT_ANSWER, AGENT_ITEMS, ask_human, begin_answer, fail_answer
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.waiting import eventually_async

WHY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why?"}]
TITLE_PROMPT = (
    '### Task:\nGenerate a concise title\nJSON format: {"title": ""}\n'
    "<chat_history>\nUSER: Why is it so?\n</chat_history>"
)


def client_of(server: RunningServer, key: str, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries, timeout=15)


@pytest.fixture
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub answers questions, and so does `secret`."""
    await airflow.add_dag("secret", {"answer": ()}, {})
    for dag_id in ("chat", "secret"):
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, 'chat')", dag_id)


@pytest.fixture
async def client(auth_server: RunningServer, ada: CallerPermissions, tagged: None) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(auth_server, ada.token) as client:
        yield client


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_models_are_the_dags_that_the_caller_may_read(
    client: openai.AsyncOpenAI, auth_server: RunningServer, ada: CallerPermissions, permissions: StubPermissions
) -> None:
    assert [(model.id, model.owned_by) async for model in client.models.list()] == [
        ("chat", "airflow"),
        ("secret", "airflow"),
    ]
    assert (await client.models.retrieve("chat")).id == "chat"
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"secret": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with client_of(auth_server, bob.token) as other:
        assert [model.id async for model in other.models.list()] == ["chat"]
        for name in ("secret", "unknown", "\0"):
            with pytest.raises(openai.NotFoundError, match="There is no model"):
                await other.chat.completions.create(model=name, messages=WHY)
        with pytest.raises(openai.NotFoundError, match="There is no model"):
            await other.models.retrieve("secret")
    async with httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers) as plain:
        assert (await plain.get("/models")).json() == (await plain.get("/v1/models")).json()


async def test_tokens_come_before_the_run_ends(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.chat.completions.create(
        model="chat",
        messages=[{"role": "system", "content": "Be brief."}, *WHY],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert stub.triggers[0].json["conf"] == {"message": "Why?", "history": [{"role": "system", "content": "Be brief."}]}
    first = await anext(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content, first.usage) == ("assistant", "", None)
    key = await begin_answer(airflow, stub, "Be")
    second = await anext(stream)
    assert second.choices[0].delta.content == "Be"
    await airflow.emit_output(key, "answer", 1, "cause", {"chunk": {"not": "text"}})
    await airflow.push(key, "answer", {"answer": "Because.", "usage": {"prompt_tokens": 2, "completion_tokens": 3}})
    rest = [chunk async for chunk in stream]
    assert text_of([first, second, *rest]) == "Because."
    assert [chunk.choices[0].finish_reason for chunk in rest if chunk.choices][-1] == "stop"
    assert rest[-1].usage is not None
    assert (rest[-1].choices, rest[-1].usage.total_tokens) == ([], 5)
    assert {(chunk.id, chunk.created, chunk.model) for chunk in rest} == {
        (f"chatcmpl-{key.run_id}", first.created, "chat")
    }


async def test_an_answer_comes_in_one_response(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stub.then = complete_run
    raw = await client.chat.completions.with_raw_response.create(model="chat", messages=WHY)
    completion = raw.parse()
    assert completion.choices[0].message.content == "because"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert raw.headers["location"].startswith("/api/v2/dags/chat/dagRuns/")


@pytest.mark.parametrize("streams", [True, False])
async def test_the_run_is_cancelled_when_the_client_closes_the_connection(
    client: openai.AsyncOpenAI,
    airflow: AirflowSql,
    stub: AirflowStub,
    monkeypatch: pytest.MonkeyPatch,
    *,
    streams: bool,
) -> None:
    monkeypatch.setattr(endpoints, "GRACE", 0.02)
    if streams:
        stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
        await begin_answer(airflow, stub, "Be")
        await anext(stream)
        await stream.close()
    else:
        calling = asyncio.create_task(client.chat.completions.create(model="chat", messages=WHY))
        await begin_answer(airflow, stub, "Be")
        calling.cancel()
        await asyncio.wait([calling])
    await eventually_async(lambda: stub.patches, what="the run is set to failed")
    assert stub.patches[0].json == {"state": "failed"}
    await wait_for_cancellation_decision()


async def test_a_complete_answer_cancels_nothing(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stub.then = complete_run
    stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
    assert text_of([chunk async for chunk in stream]) == "because"
    await wait_for_cancellation_decision()
    assert stub.patches == []


@pytest.mark.parametrize("streams", [True, False])
async def test_a_failing_run_raises_the_error_of_the_client_and_starts_no_second_run(
    auth_server: RunningServer,
    ada: CallerPermissions,
    tagged: None,
    airflow: AirflowSql,
    stub: AirflowStub,
    *,
    streams: bool,
) -> None:
    async def consume() -> None:
        async with client_of(auth_server, ada.token, retries=2) as client:
            answer = await client.chat.completions.create(model="chat", messages=WHY, stream=streams)
            if isinstance(answer, openai.AsyncStream):
                async for _ in answer:
                    pass

    consuming = asyncio.create_task(consume())
    await fail_answer(airflow, await begin_answer(airflow, stub, "Be"))
    with pytest.raises(openai.APIError, match=r"has no result: task failed \(task 'answer'\)") as raised:
        await consuming
    assert raised.value.code == "task_failed"
    assert isinstance(raised.value, openai.InternalServerError) is not streams
    assert len(stub.triggers) == 1


async def test_a_retry_after_a_lost_response_attaches_to_the_run(
    auth_server: RunningServer, ada: CallerPermissions, tagged: None, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async def lose_first_response(airflow: AirflowSql, key: RunKey) -> Response | None:
        await airflow.complete_chain(key)
        return TruncatedResponse()

    stub.then = lose_first_response
    async with client_of(auth_server, ada.token, retries=2) as client:
        for runs in (1, 2):
            completion = await client.chat.completions.create(model="chat", messages=WHY)
            assert completion.choices[0].message.content == "because"
            # The same question again is another run: it is no retry.
            assert await airflow.connection.fetchval("SELECT count(*) FROM dag_run WHERE dag_id = 'chat'") == runs
    assert len(stub.triggers) == 4


async def test_an_idempotency_key_of_the_caller_is_used(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stub.then = complete_run
    headers = {"Idempotency-Key": "message-1"}
    for _ in range(2):
        completion = await client.chat.completions.create(model="chat", messages=WHY, extra_headers=headers)
        assert completion.choices[0].message.content == "because"
    assert await airflow.connection.fetchval("SELECT count(*) FROM dag_run WHERE dag_id = 'chat'") == 1
    other: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How?"}]
    with pytest.raises(openai.BadRequestError, match="used for another request"):
        await client.chat.completions.create(model="chat", messages=other, extra_headers=headers)


async def test_a_wrong_key_is_an_authentication_error(auth_server: RunningServer, tagged: None) -> None:
    async with client_of(auth_server, "wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="chat", messages=WHY)
        assert raised.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_caller_that_may_not_trigger_gets_a_permission_error(
    client: openai.AsyncOpenAI, stub: AirflowStub, permissions: StubPermissions
) -> None:
    async def refuse_trigger(received: ReceivedRequest) -> Response | None:
        return refusal(403, "Forbidden") if received.method == "POST" else await permissions(received)

    stub.instead = refuse_trigger
    with pytest.raises(openai.PermissionDeniedError, match="Airflow answered 403"):
        await client.chat.completions.create(model="chat", messages=WHY)


async def test_a_caller_that_may_not_read_xcoms_gets_an_error(
    client: openai.AsyncOpenAI, stub: AirflowStub, ada: CallerPermissions
) -> None:
    ada.forbid_xcoms()
    stub.then = complete_run
    with pytest.raises(openai.PermissionDeniedError, match="may not read the result"):
        await client.chat.completions.create(model="chat", messages=WHY)


async def test_a_request_for_a_title_starts_no_run(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    prompt: list[ChatCompletionMessageParam] = [{"role": "user", "content": TITLE_PROMPT}]
    completion = await client.chat.completions.create(model="chat", messages=prompt)
    assert completion.choices[0].message.content == '{"title":"Why is it so?"}'
    assert stub.triggers == []
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat-tasks')")
    stub.then = complete_run
    completion = await client.chat.completions.create(model="chat", messages=prompt)
    assert completion.choices[0].message.content == "because"
    assert len(stub.triggers) == 1


async def test_a_paused_dag_is_refused(client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub) -> None:
    await airflow.connection.execute("UPDATE dag SET is_paused = true WHERE dag_id = 'chat'")
    with pytest.raises(openai.BadRequestError, match="is paused"):
        await client.chat.completions.create(model="chat", messages=WHY)
    assert stub.triggers == []


@pytest.mark.parametrize("again", ["Because.", "Bees.", "Be"])
async def test_a_retried_task_repeats_or_restarts_the_answer(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub, again: str
) -> None:
    stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
    key = await begin_answer(airflow, stub, "Be", "cause")
    for state in ("up_for_retry", "scheduled", "queued", "running"):
        if state == "scheduled":
            await airflow.archive_try(key, "answer")
        await airflow.set_task(key, "answer", state)
    await airflow.emit_output(key, "answer", 0, *again, try_number=2)
    await airflow.push(key, "answer", again)
    text = text_of([chunk async for chunk in stream])
    assert text == (again if again == "Because." else f"Because\n\n{again}")


async def test_thinking_and_tool_calls_are_reasoning(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
    key = await begin_answer(airflow, stub, *AGENT_ITEMS)
    await airflow.push(key, "answer", AGENT_ANSWER)
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert text_of(chunks) == f"Let me check.\n\n{AGENT_ANSWER}"
    assert "".join([getattr(delta, "reasoning_content", "") for delta in deltas]) == (
        'They ask for the weather.\n\nget_weather {"city": "Paris"}\n\nget_time "{"\n\nget_time failed: No clock'
        "\n\n21 degrees."
    )
    assert not any(delta.tool_calls for delta in deltas), "the client would run the tools"


async def test_thinking_is_part_of_answers_that_are_not_streamed(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    thinking = "They ask for the weather.\n\n21 degrees."
    request = asyncio.create_task(client.chat.completions.create(model="chat", messages=WHY))
    key = await begin_answer(airflow, stub, *AGENT_ITEMS)
    await airflow.push(key, "answer", AGENT_ANSWER)
    message = (await request).choices[0].message
    assert (message.content, getattr(message, "reasoning_content", None)) == (AGENT_ANSWER, thinking)
    found = await client.responses.retrieve(encode_response_id(key))
    streamed = [event async for event in await client.responses.retrieve(encode_response_id(key), stream=True)]
    assert streamed[-1].type == "response.completed"
    for response in (found, streamed[-1].response):
        assert response.output_text.endswith(AGENT_ANSWER)
        (reasoning,) = [item for item in response.output if item.type == "reasoning"]
        assert [content.text for content in reasoning.content or []] == [thinking]


async def test_an_answer_waits_until_a_human_has_answered(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
    key = await begin_answer(airflow, stub, "Be")
    await ask_human(airflow, key)
    await airflow.answer_input(key, "ask", "Approve")
    await airflow.push(key, "answer", "Because")
    assert text_of([chunk async for chunk in stream]) == "Because"


async def test_open_webui_gets_status_lines_and_others_do_not(
    auth_server: RunningServer, ada: CallerPermissions, tagged: None, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async def run_with_progress(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.set_run(key, "running")
        await airflow.start_task(key, "answer")
        items = ({"progress": 0.5, "text": "writing"}, "Because", *AGENT_ITEMS[:4])
        await airflow.emit_output(key, "answer", 0, *items)
        await airflow.push(key, "answer", "Because")

    stub.then = run_with_progress
    body = {"model": "chat", "messages": WHY, "stream": True}
    async with httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers) as plain:
        without = await plain.post("/chat/completions", json=body)
        assert without.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert '"event"' not in without.text
        shown = await plain.post("/v1/chat/completions", json=body, headers={"X-OpenWebUI-Chat-Id": "1"})
    lines = [json.loads(line[6:]) for line in shown.text.splitlines() if line.startswith('data: {"event"')]
    statuses = [(line["event"]["data"]["description"], line["event"]["data"]["done"]) for line in lines]
    assert statuses == [
        ("answer: running", False),
        ("answer: writing", False),
        ("answer: calls get_weather", False),
        ("answer: calls get_weather", True),
    ]
    assert "get_weather {" not in shown.text
    assert shown.text.endswith("data: [DONE]\n\n")


async def test_a_server_that_stops_ends_the_answer_with_an_error_and_cancels_nothing(
    settings: Callable[..., Settings], airflow: AirflowSql, stub: AirflowStub, tagged: None
) -> None:
    async with running_server(settings(airflow_url=stub.url, auth="none")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_of(server, "any") as client:
            stream = await client.chat.completions.create(model="chat", messages=WHY, stream=True)
            await begin_answer(airflow, stub, "Be")
            await anext(stream)
            reading = asyncio.create_task(_read(stream))
            await server.hub.drain(5)
            with pytest.raises(openai.APIError) as raised:
                await reading
    assert raised.value.code == "stream_draining"
    assert stub.patches == []


async def _read(stream: openai.AsyncStream[ChatCompletionChunk]) -> None:
    async for _ in stream:
        pass


async def test_every_key_works_without_authorization(
    settings: Callable[..., Settings], stub: AirflowStub, tagged: None
) -> None:
    stub.then = complete_run
    async with running_server(settings(airflow_url=stub.url, auth="none")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_of(server, "any") as client:
            assert [model.id async for model in client.models.list()] == ["chat", "secret"]
            completion = await client.chat.completions.create(model="chat", messages=WHY)
            assert completion.choices[0].message.content == "because"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"model":"chat","messages":[]}', b"x" * 2_000_000])
async def test_errors_have_the_shape_of_openai(
    auth_server: RunningServer, ada: CallerPermissions, tagged: None, body: bytes
) -> None:
    async with httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers) as plain:
        response = await plain.post("/v1/chat/completions", content=body)
    assert response.status_code == (413 if len(body) > 1000 else 400)
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
