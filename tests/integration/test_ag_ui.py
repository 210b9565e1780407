"""`HttpAgent` of the npm package `@ag-ui/client` with its verifier of events, as DAGs answer it."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from stream_server.errors import JournalUnreachable, ReadReplica
from stream_server.http.agui import endpoints
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.settings import Settings
from support.ag_ui import AGENT, BODY, QUESTION, arguments, events_until, read_events, text_of
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import begin_answer, fail_answer, retry_answer
from support.node_clients import run_node
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


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub answers questions."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")


async def test_an_answer_is_streamed_with_its_steps_state_and_result(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token)) as script:
        key = await begin_answer(airflow, stub, {"progress": 0.5, "text": "writing"}, "Be")
        events = await events_until(script, "TEXT_MESSAGE_CONTENT")
        assert events[0]["metadata"] == {"airflow": {"dag_id": "chat", "run_id": key.run_id}}
        assert {"type": "STEP_STARTED", "stepName": "answer"} in events
        await airflow.emit_output(key, "answer", 2, "cause")
        await airflow.push(key, "answer", {"answer": "Because.", "sources": ["sky"]})
        await airflow.set_task(key, "answer", "success")
        *_, result, closed = await script.until("closed")
    value = {"answer": "Because.", "sources": ["sky"]}
    assert result == {"type": "result", "result": value}
    assert text_of(closed) == "Because."
    (activity,) = [one for one in closed["messages"] if one["role"] == "activity"]
    assert (activity["activityType"], activity["content"]["text"]) == ("progress", "writing")
    assert closed["state"]["page"] == "kept"
    assert closed["state"]["dag_run"]["tasks"]["answer"]["try_number"] == 1
    assert stub.triggers[0].json["conf"] == {
        "message": "Why?",
        "history": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}],
    }


async def test_a_failing_run_is_an_error_of_the_client(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token)) as script:
        await fail_answer(airflow, await begin_answer(airflow, stub, "Be"))
        error = (await events_until(script, "RUN_ERROR"))[-1]
        closed = (await script.until("closed"))[-1]
    assert error["code"] == "task_failed"
    assert "has no result: task failed (task 'answer')" in error["message"]
    assert error["metadata"] == {"airflow": {"reconnect": False}}
    assert text_of(closed) == "Be"


async def test_a_disconnect_does_not_cancel_and_a_stop_does(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token, "abort")) as script:
        key = await begin_answer(airflow, stub, "Be")
        await script.until("closed")
    await wait_for_cancellation_decision()
    assert stub.patches == []
    async with client_for(auth_server, ada) as plain, plain.stream("POST", f"{AGENT}/t1/connect", json=BODY) as again:
        stopped = await plain.post(f"{AGENT}/t1/stop")
        assert (stopped.status_code, stopped.json()["dag_run_id"]) == (200, key.run_id)
        events = read_events((await again.aread()).decode())
    assert events[-1]["type"] == "RUN_ERROR"
    assert len(stub.triggers) == 1


async def test_a_retried_task_takes_its_text_back(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token)) as script:
        key = await begin_answer(airflow, stub, "Because")
        await events_until(script, "TEXT_MESSAGE_CONTENT")
        await retry_answer(airflow, key, "Bees")
        closed = (await script.until("closed"))[-1]
    assert text_of(closed) == "Bees"
    assert [one["id"] for one in closed["messages"][:3]] == ["1", "2", "3"]
    assert closed["state"]["dag_run"]["tasks"]["answer"]["try_number"] == 2


async def test_an_answer_continues_after_a_lost_connection_and_at_another_server(
    auth_server: RunningServer,
    ada: CallerPermissions,
    airflow: AirflowSql,
    stub: AirflowStub,
    settings: Callable[..., Settings],
) -> None:
    port = urlsplit(auth_server.url).port
    async with TcpProxy.listen(port) as proxy, running_server(settings(airflow_url=stub.url)) as other:
        address = f"http://127.0.0.1:{proxy.port}{AGENT}"
        async with run_node("ag-ui.js", address, ada.token, "t1", "run") as script:
            key = await begin_answer(airflow, stub, "Be")
            await events_until(script, "TEXT_MESSAGE_CONTENT")
            await proxy.cut_connections()
            assert (await script.until("closed"))[-2]["type"] == "error"
        # The same request attaches to the run, whose text comes again.
        async with run_node("ag-ui.js", address, ada.token, "t1", "run") as script:
            assert (await events_until(script, "TEXT_MESSAGE_CONTENT"))[-1]["delta"] == "Be"
            await auth_server.hub.drain(5)
            error = (await events_until(script, "RUN_ERROR"))[-1]
            assert error["metadata"] == {"airflow": {"reconnect": True}}
        await eventually_async(lambda: other.hub.is_live)
        known = {"id": key.run_id, "role": "assistant", "content": "Be"}
        body = {**BODY, "runId": "again", "messages": [QUESTION, known]}
        async with (
            client_for(other, ada) as plain,
            plain.stream("POST", f"{AGENT}/t1/connect", json=body) as response,
        ):
            await airflow.emit_output(key, "answer", 1, "cause")
            await airflow.push(key, "answer", "Because")
            events = read_events((await response.aread()).decode())
    assert [event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT"] == ["cause"]
    assert events[-1]["result"] == "Because"
    assert {trigger.json["dag_run_id"] for trigger in stub.triggers} == {key.run_id}
    assert stub.patches == []


async def test_a_repeated_request_attaches_with_the_messages_that_the_client_has_by_then(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", AGENT, json=BODY):
            key = await begin_answer(airflow, stub, "Be")
        known = [
            {"id": f"{key.run_id}/answer/1/c1", "role": "tool", "toolCallId": "c1", "content": "5"},
            {"id": key.run_id, "role": "assistant", "content": "Be"},
        ]
        body = {**BODY, "messages": [QUESTION, *known]}
        async with plain.stream("POST", AGENT, json=body) as response:
            assert response.status_code == 200
            await airflow.push(key, "answer", "Because")
            events = read_events((await response.aread()).decode())
        assert [event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT"] == ["cause"]
        other = await plain.post(AGENT, json={**body, "runId": "other"})
    assert other.status_code == 422
    assert {trigger.json["dag_run_id"] for trigger in stub.triggers} == {key.run_id}


async def test_a_finished_answer_is_still_there_for_a_page_that_was_reloaded(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub
) -> None:
    stub.then = complete_run
    async with client_for(auth_server, ada) as plain:
        assert (await plain.post(f"{AGENT}/t1/connect", json=BODY)).status_code == 204
        assert (await plain.post(f"{AGENT}/t1/stop")).status_code == 204
        first = read_events((await plain.post(AGENT, json=BODY)).text)
        again = read_events((await plain.post(f"{AGENT}/t1/connect", json={**BODY, "messages": []})).text)
        assert again[-1] == {**first[-1], "runId": "first"}
        assert [event for event in again if event["type"].startswith("TEXT")] == [
            event for event in first if event["type"].startswith("TEXT")
        ]


async def test_a_thread_id_may_have_slashes_but_must_be_the_same_in_path_and_body(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub
) -> None:
    stub.then = complete_run
    body = {**BODY, "threadId": "team a/1"}
    async with client_for(auth_server, ada) as plain:
        first = read_events((await plain.post(AGENT, json=body)).text)
        again = await plain.post(f"{AGENT}/team%20a%2F1/connect", json=body)
        assert read_events(again.text)[-1] == first[-1]
        assert (await plain.post(f"{AGENT}/team%20a%2F1/stop")).status_code == 200
        other = await plain.post(f"{AGENT}/team%20a%2F1/connect", json=BODY)
        assert (other.status_code, "'t1'" in other.json()["detail"]) == (422, True)
        dots = await plain.post(AGENT, json={**BODY, "threadId": ".."})
    assert (dots.status_code, len(stub.triggers)) == (422, 1)


async def test_each_caller_needs_their_own_rights(
    auth_server: RunningServer, ada: CallerPermissions, permissions: StubPermissions, stub: AirflowStub
) -> None:
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with client_for(auth_server, ada) as plain, plain.stream("POST", AGENT, json=BODY):
        await eventually_async(lambda: stub.triggers)
        async with run_node(*arguments(auth_server, bob.token)) as script:
            assert "404" in (await script.until("closed"))[-2]["message"]
        async with client_for(auth_server, bob) as other:
            assert (await other.get(AGENT)).status_code == 404
            assert (await other.post(f"{AGENT}/t1/connect", json=BODY)).status_code == 403
            assert (await other.post(f"{AGENT}/t1/stop")).status_code == 403
        async with client_for(auth_server) as anonymous:
            assert (await anonymous.post(AGENT, json=BODY)).status_code == 401
        capabilities = (await plain.get(AGENT)).json()
    assert capabilities["identity"]["name"] == "chat"
    assert capabilities["transport"]["resumable"] is True
    assert (len(stub.triggers), stub.patches) == (1, [])


async def test_users_with_the_same_thread_id_have_different_threads(
    auth_server: RunningServer,
    ada: CallerPermissions,
    permissions: StubPermissions,
    stub: AirflowStub,
    airflow: AirflowSql,
) -> None:
    async with clients_of_two_users(auth_server, permissions, ada) as (plain, other, later):
        async with plain.stream("POST", AGENT, json=BODY) as first:
            assert first.status_code == 200
            key = await begin_answer(airflow, stub, "Be")
        async with other.stream("POST", f"{AGENT}/t1/connect", json=BODY) as connected:
            assert connected.status_code == 204
        assert (await other.post(f"{AGENT}/t1/stop")).status_code == 204
        async with other.stream("POST", AGENT, json=BODY) as second:
            assert second.status_code == 200
            own = await begin_answer(airflow, stub)
        assert own != key, "the same thread id, run id and question of another user"
        assert (await later.post(f"{AGENT}/t1/stop")).json()["dag_run_id"] == key.run_id
        assert (await other.post(f"{AGENT}/t1/stop")).json()["dag_run_id"] == own.run_id


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {**BODY, "threadId": ""},
        {**BODY, "messages": []},
        {**BODY, "messages": ["Why?"]},
        {**BODY, "messages": [{"id": "m1", "role": "assistant", "content": "Why?"}]},
        {**BODY, "messages": [{"id": "m1", "role": "user", "content": [{"type": "image"}]}]},
        {**BODY, "resume": [{"interruptId": "x", "status": "resolved"}]},
    ],
)
async def test_a_request_without_a_question_is_refused(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, body: object
) -> None:
    async with client_for(auth_server, ada) as plain:
        answer = await plain.post(AGENT, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert (stub.triggers, auth_server.subscriptions()) == ([], [])


async def test_a_thread_that_cannot_be_stored_leaves_nothing_open(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object) -> None:
        raise JournalUnreachable("PostgreSQL does not answer")

    monkeypatch.setattr(endpoints, "store_current_run", fail)
    async with client_for(auth_server, ada) as plain:
        answer = await plain.post(AGENT, json=BODY)
    assert len(stub.triggers) == 1
    assert answer.status_code == 503
    assert answer.headers["location"] in answer.json()["detail"]
    assert auth_server.subscriptions() == []


async def test_a_server_that_stores_nothing_answers_but_does_not_connect(
    auth_server: RunningServer, ada: CallerPermissions, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: object, **_options: object) -> None:
        raise ReadReplica("The database is a read replica")

    for name in ("find_run", "claim_run", "replace_run"):
        monkeypatch.setattr(IdempotencyKeys, name, refuse)
    stub.then = complete_run
    async with client_for(auth_server, ada) as plain:
        assert read_events((await plain.post(AGENT, json=BODY)).text)[-1]["type"] == "RUN_FINISHED"
        assert (await plain.post(f"{AGENT}/t1/connect", json=BODY)).status_code == 204
