"""The Responses API, as the real client of OpenAI uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import openai
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.http.openai import responses
from stream_server.http.openai.response_objects import encode_response_id
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, describe_run
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import ask_human, begin_answer, fail_answer, retry_answer
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions, client_for, refusal, unsigned_jwt
from support.waiting import eventually_answered, eventually_async

EXCHANGE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "because"}]
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
async def client(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> AsyncIterator[openai.AsyncOpenAI]:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")
    async with client_of(auth_server, ada.token) as client:
        yield client


def client_of(server: RunningServer, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=15)


async def next_of(stream: openai.AsyncStream[Any], kind: str) -> Any:
    async for event in stream:
        if event.type == kind:
            return event
    raise AssertionError(f"the stream ended without {kind}")


async def test_a_response_comes_whole(client: openai.AsyncOpenAI, stub: AirflowStub) -> None:
    stub.then = complete_run
    response = await client.responses.create(model="chat", input="Why?", instructions="Be brief.")
    assert (response.status, response.output_text, response.error) == ("completed", "because", None)
    assert stub.triggers[0].json["conf"] == {"message": "Why?", "history": [{"role": "system", "content": "Be brief."}]}
    again = await client.responses.retrieve(response.id)
    assert (again.id, again.status, again.output_text) == (response.id, "completed", "because")


async def test_events_are_streamed_and_resumed(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.responses.create(model="chat", input="Why?", stream=True, background=True)
    created = await next_of(stream, "response.created")
    key = await begin_answer(airflow, stub, "Be")
    events = [created, *[await anext(stream) for _ in range(4)]]
    assert events[-1].delta == "Be"
    await stream.close()
    await wait_for_cancellation_decision()
    assert stub.patches == [], "a background response continues"
    await airflow.emit_output(key, "answer", 1, "cause")
    resumed = await client.responses.retrieve(
        created.response.id, stream=True, starting_after=events[-1].sequence_number
    )
    first = await anext(resumed)
    assert first.delta == "cause"
    await airflow.push(key, "answer", "Because")
    events += [first, *[event async for event in resumed]]
    assert [event.type for event in events] == EVENTS
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert events[-1].response.output_text == "Because"
    whole = [event async for event in await client.responses.retrieve(created.response.id, stream=True)]
    assert [event.sequence_number for event in whole][-4:] == numbers[-4:]


async def test_a_background_response_is_polled_and_cancelled(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    response = await client.responses.create(model="chat", input="Why?", background=True, metadata={"a": "b"})
    assert (response.status, response.background, response.metadata) == ("queued", True, {"a": "b"})
    await begin_answer(airflow, stub, "Be")

    async def has_text() -> bool:
        found = await client.responses.retrieve(response.id)
        return (found.status, found.output_text) == ("in_progress", "Be")

    await eventually_answered(has_text)
    cancelled = await client.responses.cancel(response.id)
    assert (cancelled.status, stub.patches[0].json) == ("cancelled", {"state": "failed"})
    assert (await client.responses.retrieve(response.id)).status == "failed"


async def test_a_response_without_background_is_cancelled_by_a_disconnect(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "GRACE", 0.02)
    stream = await client.responses.create(model="chat", input="Why?", stream=True)
    await begin_answer(airflow, stub, "Be")
    await next_of(stream, "response.output_text.delta")
    await stream.close()
    await eventually_async(lambda: stub.patches, what="the run is set to failed")
    await wait_for_cancellation_decision()


async def test_a_stream_continues_after_its_server_has_stopped(
    client: openai.AsyncOpenAI,
    auth_server: RunningServer,
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    settings: Callable[..., Settings],
) -> None:
    stream = await client.responses.create(model="chat", input="Why?", stream=True)
    created = await next_of(stream, "response.created")
    key = await begin_answer(airflow, stub, "Be")
    await next_of(stream, "response.output_text.delta")
    await auth_server.hub.drain(5)
    error = await next_of(stream, "error")
    assert error.code == "stream_draining"
    async with running_server(settings(airflow_url=stub.url)) as other:
        await eventually_async(lambda: other.hub.is_live)
        await airflow.emit_output(key, "answer", 1, "cause")
        async with client_of(other, ada.token) as elsewhere:
            resumed = await elsewhere.responses.retrieve(
                created.response.id, stream=True, starting_after=error.sequence_number
            )
            assert (await anext(resumed)).delta == "cause"
    assert stub.patches == []


async def test_a_failing_run_is_a_failed_response(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.responses.create(model="chat", input="Why?", stream=True)
    await fail_answer(airflow, await begin_answer(airflow, stub, "Be"))
    failed = await next_of(stream, "response.failed")
    assert "task_failed" in failed.response.error.message
    found = await client.responses.retrieve(failed.response.id)
    assert (found.status, found.output_text) == ("failed", "Be")
    assert [response.output[0].status for response in (failed.response, found)] == ["incomplete", "incomplete"]


async def test_an_answer_waits_until_a_human_has_answered_and_a_retried_task_restarts_it(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stream = await client.responses.create(model="chat", input="Why?", stream=True)
    key = await begin_answer(airflow, stub, "Because")
    assert (await next_of(stream, "response.output_text.delta")).delta == "Because"
    await ask_human(airflow, key)
    assert (await client.responses.retrieve(encode_response_id(key))).status == "in_progress"
    await airflow.answer_input(key, "ask", "Approve")
    await retry_answer(airflow, key, "Bees")
    completed = await next_of(stream, "response.completed")
    assert completed.response.output_text == "Because\n\nBees"
    assert (await client.responses.retrieve(completed.response.id)).output_text == "Bees"


async def test_a_conversation_continues_by_the_id_of_a_response(
    client: openai.AsyncOpenAI,
    ada: CallerPermissions,
    permissions: StubPermissions,
    stub: AirflowStub,
    settings: Callable[..., Settings],
) -> None:
    stub.then = complete_run
    first = await client.responses.create(model="chat", input="Why?", instructions="Be brief.")

    message = "Why?"

    async def with_conf(received: ReceivedRequest) -> Response | None:
        run_id = quote(stub.triggers[0].json["dag_run_id"], safe="")
        if received.method == "GET" and received.target.endswith(run_id):
            conf = {**stub.triggers[0].json["conf"], "message": message}
            return JSONResponse(
                {**describe_run(RunKey("chat", stub.triggers[0].json["dag_run_id"]), "success"), "conf": conf}
            )
        return await permissions(received)

    stub.instead = with_conf
    await client.responses.create(model="chat", input="And now?", previous_response_id=first.id)
    assert stub.triggers[-1].json["conf"] == {
        "message": "And now?",
        "history": [{"role": "system", "content": "Be brief."}, *EXCHANGE],
    }
    await client.responses.create(
        model="chat", input="And now?", instructions="Be verbose.", previous_response_id=first.id
    )
    assert stub.triggers[-1].json["conf"]["history"] == [{"role": "system", "content": "Be verbose."}, *EXCHANGE]
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await client.responses.create(model="chat", input="And now?", previous_response_id="resp_x")
    message = "Why?" * 500
    async with running_server(settings(airflow_url=stub.url, max_body_bytes=1000)) as small:
        await eventually_async(lambda: small.hub.is_live)
        async with client_of(small, ada.token) as limited:
            with pytest.raises(openai.APIStatusError, match="more than 1000 bytes") as raised:
                await limited.responses.create(model="chat", input="And now?", previous_response_id=first.id)
    assert raised.value.status_code == 413


async def test_each_caller_needs_their_own_rights(
    client: openai.AsyncOpenAI, auth_server: RunningServer, permissions: StubPermissions, stub: AirflowStub
) -> None:
    stub.then = complete_run
    response = await client.responses.create(model="chat", input="Why?")
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with client_of(auth_server, bob.token) as other:
        for response_id in (response.id, "resp_unknown", "x"):
            with pytest.raises(openai.NotFoundError):
                await other.responses.retrieve(response_id)
            with pytest.raises(openai.NotFoundError):
                await other.responses.cancel(response_id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(model="chat", input="Why?")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(encode_response_id(RunKey("chat", "unknown")))


@pytest.mark.parametrize("query", ["stream=maybe", "stream=true&starting_after=x", "stream=true&starting_after=-5"])
async def test_a_wrong_query_leaves_no_subscription_open(
    client: openai.AsyncOpenAI, auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, query: str
) -> None:
    response = await client.responses.create(model="chat", input="Why?", background=True)
    assert len(stub.triggers) == 1
    async with client_for(auth_server, ada) as plain:
        assert (await plain.get(f"/v1/responses/{response.id}?{query}")).status_code == 400
    assert auth_server.subscriptions() == []
