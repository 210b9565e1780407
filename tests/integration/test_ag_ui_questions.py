"""Questions to a human as interrupts of `@ag-ui/client`, and their answers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import JSONResponse

from stream_server.domain.run_state import RunKey
from support.ag_ui import AGENT, BODY, arguments, events_until, read_events, text_of
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.chat_runs import ask_human, begin_answer
from support.node_clients import run_node
from support.server import RunningServer
from support.stub_callers import CallerPermissions, client_for


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub answers questions."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")


@pytest.fixture
def answering(stub: AirflowStub, airflow: AirflowSql, permissions: object) -> AirflowStub:
    """Airflow writes the answers to questions of tasks."""
    before = stub.instead
    assert before is not None

    async def respond(received: ReceivedRequest) -> Any:
        if received.method != "PATCH" or "hitlDetails" not in received.target:
            return await before(received)
        key = RunKey("chat", stub.triggers[-1].json["dag_run_id"])
        task_id = received.target.split("/taskInstances/")[1].split("/")[0]
        await airflow.answer_input(key, task_id, *received.json["chosen_options"])
        return JSONResponse(
            {**received.json, "responded_by": {"id": "1", "name": "Ada"}, "responded_at": "2026-11-22T14:21:10Z"}
        )

    stub.instead = respond
    return stub


async def test_a_question_to_a_human_interrupts_and_its_answer_continues_the_same_dag_run(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, answering: AirflowStub
) -> None:
    async with run_node(*arguments(auth_server, ada.token, "answer", '{"chosen_options": "Reject"}')) as script:
        key = await begin_answer(airflow, answering, "Be")
        await events_until(script, "TEXT_MESSAGE_CONTENT")
        await ask_human(airflow, key)
        events = await events_until(script, "RUN_FINISHED")
        assert events[-2]["type"] == "STATE_SNAPSHOT"
        (interrupt,) = events[-1]["outcome"]["interrupts"]
        assert (interrupt["reason"], interrupt["message"]) == ("confirmation", "Publish?")
        assert interrupt["responseSchema"]["properties"]["chosen_options"]["enum"] == ["Approve", "Reject"]
        started = (await events_until(script, "RUN_STARTED"))[-1]
        assert (started["runId"], started["metadata"]["airflow"]["run_id"]) == ("next-1", key.run_id)
        await airflow.emit_output(key, "answer", 1, "cause")
        await airflow.push(key, "answer", "Because")
        closed = (await script.until("closed"))[-1]
    assert (text_of(closed), closed["interrupts"]) == ("Because", [])
    assert [patch.json["chosen_options"] for patch in answering.patches if patch.json] == [["Reject"]]
    assert len(answering.triggers) == 1


@pytest.mark.parametrize("payload", [True, {"approved": True}, "Approve", ["Approve"], {"chosen_options": ["Approve"]}])
async def test_an_answer_has_many_forms_and_a_repeated_one_changes_nothing(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, answering: AirflowStub, payload: object
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", AGENT, json=BODY) as response:
            key = await begin_answer(airflow, answering)
            await ask_human(airflow, key)
            interrupt = read_events((await response.aread()).decode())[-1]["outcome"]["interrupts"][0]
        resume = {"interruptId": interrupt["id"], "status": "resolved", "payload": payload}
        for _ in range(2):
            async with plain.stream("POST", AGENT, json={**BODY, "runId": "next", "resume": [resume]}) as response:
                assert response.status_code == 200
        assert [patch.json["chosen_options"] for patch in answering.patches if patch.json] == [["Approve"]]
        await airflow.push(key, "answer", "Because")
        again = await plain.post(AGENT, json={**BODY, "runId": "next", "resume": [resume]})
    assert read_events(again.text)[-1]["result"] == "Because"


def read_interrupt(text: str) -> dict[str, Any]:
    """Return the interrupt with which a response ends."""
    interrupt: dict[str, Any] = read_events(text)[-1]["outcome"]["interrupts"][0]
    return interrupt


def resume_with(interrupt: dict[str, Any], run_id: str) -> dict[str, Any]:
    entry = {"interruptId": interrupt["id"], "status": "resolved", "payload": "Approve"}
    return {**BODY, "runId": run_id, "resume": [entry]}


async def test_a_question_that_has_its_answer_interrupts_no_more(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, answering: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", AGENT, json=BODY) as response:
            key = await begin_answer(airflow, answering)
            await ask_human(airflow, key)
            first = read_interrupt((await response.aread()).decode())
        async with plain.stream("POST", AGENT, json=resume_with(first, "second")) as response:
            await ask_human(airflow, key, "clean_up")
            second = read_interrupt((await response.aread()).decode())
        assert second["metadata"]["airflow"]["task_id"] == "clean_up"
        connected = await plain.post(f"{AGENT}/t1/connect", json=BODY)
        assert read_interrupt(connected.text)["id"] == second["id"]
        async with plain.stream("POST", AGENT, json=resume_with(second, "third")) as response:
            await airflow.push(key, "answer", "Because")
            assert read_events((await response.aread()).decode())[-1]["result"] == "Because"
        connected = await plain.post(f"{AGENT}/t1/connect", json=BODY)
    assert read_events(connected.text)[-1]["result"] == "Because"


async def test_a_question_that_has_expired_interrupts_no_more(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, answering: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", AGENT, json=BODY) as response:
            key = await begin_answer(airflow, answering)
            await ask_human(airflow, key)
            assert read_events((await response.aread()).decode())[-1]["outcome"]["type"] == "interrupt"
        await airflow.answer_input(key, "ask", "Approve", by=None)
        await airflow.push(key, "answer", "Because")
        connected = await plain.post(f"{AGENT}/t1/connect", json=BODY)
    assert read_events(connected.text)[-1]["result"] == "Because"


async def test_a_cancelled_interrupt_stays_open_for_others(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql, answering: AirflowStub
) -> None:
    async with client_for(auth_server, ada) as plain:
        async with plain.stream("POST", AGENT, json=BODY) as response:
            key = await begin_answer(airflow, answering)
            await ask_human(airflow, key)
            interrupt = read_events((await response.aread()).decode())[-1]["outcome"]["interrupts"][0]
        resume = {"interruptId": interrupt["id"], "status": "cancelled"}
        dropped = await plain.post(AGENT, json={**BODY, "runId": "next", "resume": [resume]})
        assert read_events(dropped.text)[-1]["outcome"] == {"type": "cancelled"}
        lost = await plain.post(AGENT, json={**BODY, "threadId": "other", "resume": [resume]})
    assert answering.patches == []
    assert (lost.status_code, "no run" in lost.json()["detail"]) == (422, True)
