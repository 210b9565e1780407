"""The npm package `ai` in three major versions, as DAGs answer it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from stream_server.errors import JournalUnreachable, ReadReplica
from stream_server.http.ai_sdk import endpoints
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import AGENT_ANSWER, AGENT_ITEMS, ask_human, begin_answer, fail_answer, retry_answer
from support.node_clients import ClientProcess, run_node
from support.server import RunningServer, running_server
from support.stub_callers import (
    CallerPermissions,
    StubPermissions,
    client_for,
    clients_of_two_users,
    refusal,
    unsigned_jwt,
)
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

CHAT = "/api/v2/dags/chat/chat"
BODY = {"id": "c1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Why?"}]}]}
MAJORS = ("5", "6", "7")
each_major = pytest.mark.parametrize("major", MAJORS)


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub answers questions."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")


def arguments(server: RunningServer, key: str, major: str, mode: str = "send", query: str = "") -> list[str]:
    return ["ai-chat.js", major, f"{server.url}{CHAT}{query}", key, "c1", mode]


async def last_message(script: ClientProcess) -> dict[str, Any]:
    """Return the last version of the message, when the client has closed the stream."""
    lines = await script.until("closed")
    message: dict[str, Any] = lines[-2]["message"]
    return message


def texts_of(message: dict[str, Any]) -> list[str]:
    return [part["text"] for part in message["parts"] if part["type"] == "text"]


def data_of(message: dict[str, Any], name: str) -> list[Any]:
    return [part["data"] for part in message["parts"] if part["type"] == f"data-{name}"]


@each_major
async def test_a_message_is_streamed_with_its_tasks_and_result(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    async with run_node(*arguments(auth_server, ada.token, major)) as script:
        key = await begin_answer(airflow, stub, {"progress": 0.5, "text": "writing"}, "Be")
        while not any(texts_of(message := (await script.next())["message"])):
            pass
        assert (message["id"], message["metadata"]) == (key.run_id, {"dag_id": "chat", "run_id": key.run_id})
        assert texts_of(message) == ["Be"]
        await airflow.emit_output(key, "answer", 2, "cause")
        await airflow.push(key, "answer", {"answer": "Because.", "sources": ["sky"]})
        message = await last_message(script)
    assert texts_of(message) == ["Because."]
    assert {"task_id": "answer", "map_index": -1, "state": "running", "try_number": 1} in data_of(message, "task")
    assert data_of(message, "progress") == [{"task_id": "answer", "map_index": -1, "fraction": 0.5, "text": "writing"}]
    assert data_of(message, "result") == [
        {"results": {"answer": {"answer": "Because.", "sources": ["sky"]}}, "references": {}}
    ]
    assert stub.triggers[0].json["conf"] == {
        "message": "Why?",
        "history": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}],
    }


@each_major
async def test_a_failing_run_is_an_error_of_the_client(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    async with run_node(*arguments(auth_server, ada.token, major)) as script:
        await fail_answer(airflow, await begin_answer(airflow, stub, "Be"))
        error = (await script.until("closed"))[-2]
    assert error["type"] == "error"
    assert "has no result: task failed (task 'answer')" in error["message"]


@each_major
async def test_a_chat_is_resumed_from_its_start_and_stopped(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    resume = arguments(auth_server, ada.token, major, "resume")
    async with run_node(*resume) as script:
        assert (await script.until("closed"))[0] == {"type": "nothing"}
    async with run_node(*arguments(auth_server, ada.token, major, "abort")) as script:
        key = await begin_answer(airflow, stub, "Be")
        await script.until("closed")
    await wait_for_cancellation_decision()
    assert stub.patches == [], "a disconnect does not cancel the run"
    async with run_node(*resume) as script:
        while not any(texts_of(message := (await script.next())["message"])):
            pass
        assert (message["id"], texts_of(message)) == (key.run_id, ["Be"])
        async with client_for(auth_server, ada) as plain:
            stopped = await plain.post(f"{CHAT}/c1/stop")
            assert (stopped.status_code, stopped.json()["state"]) == (200, "failed")
        assert (await script.until("closed"))[-2]["type"] == "error"
    async with run_node(*resume) as script:
        assert (await script.until("closed"))[0] == {"type": "nothing"}


@each_major
async def test_a_question_to_a_human_is_a_part_that_gets_its_answer(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    async with run_node(*arguments(auth_server, ada.token, major)) as script:
        key = await begin_answer(airflow, stub, "Be")
        await ask_human(airflow, key)
        while not data_of(message := (await script.next())["message"], "input"):
            pass
        (question,) = data_of(message, "input")
        assert (question["task_id"], question["subject"], question["options"]) == (
            "ask",
            "Publish?",
            ["Approve", "Reject"],
        )
        await airflow.answer_input(key, "ask", "Approve")
        await airflow.push(key, "answer", "Because")
        (answered,) = data_of(await last_message(script), "input")
    assert answered["subject"] == "Publish?"
    assert (answered["answered"]["chosen_options"], answered["answered"]["by"]["id"]) == (["Approve"], "ada")


@each_major
async def test_thinking_and_tool_calls_of_an_agent_are_parts(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    async with run_node(*arguments(auth_server, ada.token, major)) as script:
        key = await begin_answer(airflow, stub, *AGENT_ITEMS)
        await airflow.push(key, "answer", AGENT_ANSWER)
        message = await last_message(script)
    parts = [part for part in message["parts"] if part["type"] in {"reasoning", "text", "dynamic-tool"}]
    assert [part.get("text", part.get("toolName")) for part in parts] == [
        "They ask for the weather.",
        "get_weather",
        "Let me check.",
        "get_time",
        "21 degrees.",
        "\n\nIt is warm.",
    ]
    weather, time = (part for part in parts if part["type"] == "dynamic-tool")
    assert (weather["state"], weather["input"], weather["output"]) == (
        "output-available",
        {"city": "Paris"},
        {"celsius": 21},
    )
    assert (time["state"], time["input"], time["errorText"]) == ("output-error", "{", "No clock")
    assert {part["state"] for part in parts if part["type"] != "dynamic-tool"} == {"done"}
    # Clients run other tools themselves, and send the results. Version 5 does not store the member.
    assert {part.get("providerExecuted", major == "5") for part in (weather, time)} == {True}


@each_major
async def test_a_retried_task_that_writes_other_text_begins_a_new_part(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub, major: str
) -> None:
    async with run_node(*arguments(auth_server, ada.token, major)) as script:
        key = await begin_answer(airflow, stub, "Because")
        while not any(texts_of((await script.next())["message"])):
            pass
        await retry_answer(airflow, key, "Bees")
        message = await last_message(script)
    assert texts_of(message) == ["Because", "Bees"]
    assert data_of(message, "reset") == [{"text_id": "text-1"}]


@each_major
async def test_an_answer_continues_after_a_lost_connection_and_at_another_server(
    auth_server: RunningServer,
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    settings: Callable[..., Settings],
    major: str,
) -> None:
    port = urlsplit(auth_server.url).port
    async with TcpProxy.listen(port) as proxy, running_server(settings(airflow_url=stub.url)) as other:
        address = f"http://127.0.0.1:{proxy.port}{CHAT}"
        async with run_node("ai-chat.js", major, address, ada.token, "c1", "send") as script:
            key = await begin_answer(airflow, stub, "Be")
            while not any(texts_of((await script.next())["message"])):
                pass
            await proxy.cut_connections()
            assert (await script.until("closed"))[-2]["type"] == "error"
        async with run_node("ai-chat.js", major, address, ada.token, "c1", "resume") as script:
            while not any(texts_of((await script.next())["message"])):
                pass
            await auth_server.hub.drain(5)
            assert (await script.until("closed"))[-2]["type"] == "error"
        await eventually_async(lambda: other.hub.is_live)
        async with run_node(*arguments(other, ada.token, major, "resume")) as script:
            await airflow.emit_output(key, "answer", 1, "cause")
            await airflow.push(key, "answer", "Because")
            assert texts_of(await last_message(script)) == ["Because"]
    assert (len(stub.triggers), stub.patches) == (1, [])


async def test_version_7_takes_text_back(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token, "7", query="?reset=step")) as script:
        key = await begin_answer(airflow, stub, *AGENT_ITEMS[:4], "Because")
        await airflow.start_task(key, "ask")
        await airflow.emit_output(key, "ask", 0, *AGENT_ITEMS[:4])
        while not any(texts_of((await script.next())["message"])):
            pass
        await retry_answer(airflow, key, "Bees")
        message = await last_message(script)
    assert texts_of(message) == ["Bees"]
    calls = [part["toolCallId"] for part in message["parts"] if part["type"] == "dynamic-tool"]
    assert calls == ["ask/1/c1"], "what the first try of the other task has done is taken back"
    assert [task["try_number"] for task in data_of(message, "task") if task["task_id"] == "answer"] == [2]


async def test_a_chat_that_is_resumed_has_questions_with_their_answers(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", CHAT, json=BODY):
            key = await begin_answer(airflow, stub, "Be")
        await ask_human(airflow, key)
        await airflow.answer_input(key, "ask", "Approve")
        async with plain.stream("GET", f"{CHAT}/c1/stream") as resumed:
            await airflow.push(key, "answer", "Because")
            lines = (await resumed.aread()).decode().splitlines()
    parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    answered = [part["data"] for part in parts if part["type"] == "data-input"][-1]
    assert (answered["subject"], answered["answered"]["chosen_options"]) == ("Publish?", ["Approve"])


async def test_the_next_question_of_a_chat_is_the_current_one(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        stub.then = complete_run
        first = await plain.post(CHAT, json=BODY)
        assert first.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert first.text.endswith("data: [DONE]\n\n")
        assert (await plain.get(f"{CHAT}/c1/stream")).status_code == 204
        stub.then = None
        async with plain.stream("POST", CHAT, json=BODY) as second:
            async for line in second.aiter_lines():
                if line.startswith("data: "):
                    start = json.loads(line[6:])
                    break
        assert (await plain.post(f"{CHAT}/c1/stop")).json()["dag_run_id"] == start["messageId"]
        assert start["messageId"] not in first.text


async def test_each_caller_needs_their_own_rights(
    auth_server: RunningServer, ada: CallerPermissions, permissions: StubPermissions, stub: AirflowStub
) -> None:
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with client_for(auth_server, ada) as plain, plain.stream("POST", CHAT, json=BODY):
        await eventually_async(lambda: stub.triggers)
        async with client_for(auth_server, bob) as other:
            assert (await other.post(CHAT, json=BODY)).status_code == 404
            assert (await other.get(f"{CHAT}/c1/stream")).status_code == 403
            assert (await other.post(f"{CHAT}/c1/stop")).status_code == 403
        async with client_for(auth_server) as anonymous:
            assert (await anonymous.post(CHAT, json=BODY)).status_code == 401
    assert len(stub.triggers) == 1
    assert stub.patches == []


async def test_users_with_the_same_chat_id_have_different_chats(
    auth_server: RunningServer,
    ada: CallerPermissions,
    permissions: StubPermissions,
    stub: AirflowStub,
    airflow: AirflowSql,
) -> None:
    async with clients_of_two_users(auth_server, permissions, ada) as (plain, other, later):
        async with plain.stream("POST", CHAT, json=BODY) as first:
            assert first.status_code == 200
            key = await begin_answer(airflow, stub, "Be")
        async with other.stream("GET", f"{CHAT}/c1/stream") as resumed:
            assert resumed.status_code == 204
        assert (await other.post(f"{CHAT}/c1/stop")).status_code == 204
        async with other.stream("POST", CHAT, json=BODY) as second:
            assert second.status_code == 200
            own = await begin_answer(airflow, stub)
        assert (await later.post(f"{CHAT}/c1/stop")).json()["dag_run_id"] == key.run_id
        assert (await other.post(f"{CHAT}/c1/stop")).json()["dag_run_id"] == own.run_id


@pytest.mark.parametrize(
    "body",
    [{}, {"id": "", "messages": []}, {"id": "c1", "messages": []}, {**BODY, "messages": [{"role": "assistant"}]}, []],
)
async def test_a_request_without_a_question_is_refused(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, body: object
) -> None:
    async with client_for(auth_server, ada) as plain:
        answer = await plain.post(CHAT, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert stub.triggers == []


async def test_a_wrong_value_of_reset_starts_no_run_and_leaves_nothing_open(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain, plain.stream("POST", CHAT, json=BODY) as first:
        assert first.status_code == 200
        await eventually_async(lambda: len(auth_server.subscriptions()) == 1)
        assert (await plain.post(f"{CHAT}?reset=all", json=BODY)).status_code == 422
        assert (await plain.get(f"{CHAT}/c1/stream?reset=all")).status_code == 422
        assert len(auth_server.subscriptions()) == len(stub.triggers) == 1


async def test_a_chat_that_cannot_be_stored_leaves_nothing_open(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object) -> None:
        raise JournalUnreachable("PostgreSQL does not answer")

    monkeypatch.setattr(endpoints, "store_current_run", fail)
    async with client_for(auth_server, ada) as plain:
        answer = await plain.post(CHAT, json=BODY)
    assert len(stub.triggers) == 1
    assert answer.status_code == 503
    assert answer.headers["location"] in answer.json()["detail"]
    assert auth_server.subscriptions() == []


async def test_a_server_that_stores_nothing_has_no_current_answer(
    auth_server: RunningServer, ada: CallerPermissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: object, **_options: object) -> None:
        raise ReadReplica("The database is a read replica")

    monkeypatch.setattr(IdempotencyKeys, "find_run", refuse)
    async with client_for(auth_server, ada) as plain:
        assert (await plain.get(f"{CHAT}/c1/stream")).status_code == 204
        assert (await plain.post(f"{CHAT}/c1/stop")).status_code == 204


async def test_head_of_a_stream_has_no_body(auth_server: RunningServer, ada: CallerPermissions) -> None:
    async with client_for(auth_server, ada) as plain, plain.stream("POST", CHAT, json=BODY) as first:
        assert first.status_code == 200
        await eventually_async(lambda: len(auth_server.subscriptions()) == 1)
        answer = await plain.head(f"{CHAT}/c1/stream")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert len(auth_server.subscriptions()) == 1


async def test_the_last_run_of_a_chat_is_found_beside_resumes_of_it(journal: str) -> None:
    store = RunStore(journal, pool_size=4, max_result_bytes=0)
    keys = IdempotencyKeys(store)
    found: list[str | None] = []

    async def resume() -> None:
        found.extend([await keys.find_run(b"chat") for _ in range(30)])

    async def ask(run_id: str) -> None:
        await keys.replace_run(b"chat", b"", run_id, 60.0)
        assert await keys.find_run(b"chat") in {"first", "second"}

    try:
        for _ in range(5):
            await asyncio.gather(resume(), resume(), ask("first"), ask("second"))
            found.clear()
            await asyncio.gather(resume(), ask("first"), ask("second"))
            assert set(found) <= {"first", "second"}
            for run_id in ("first", "second"):
                await keys.release_run(b"chat", run_id)
            assert await keys.find_run(b"chat") is None
    finally:
        await store.close()
