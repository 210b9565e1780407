"""Answers to requests for human input, over HTTP and over WebSocket, which are passed to Airflow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from websockets.asyncio.client import ClientConnection, connect

from stream_server.client import Refused, answer_input
from support.airflow_stub import REGION_ID, AirflowStub, ReceivedRequest
from support.server import RunningServer
from support.stub_callers import CallerPermissions, client_for

PATH = "/api/v2/dags/chat/dagRuns/r1/taskInstances/ask"
INPUT = f"{PATH}/input"
ANSWER = {"chosen_options": ["Approve"], "params_input": {"reason": "fine"}}
WRITTEN = {**ANSWER, "responded_by": {"id": "1", "name": "Ada"}, "responded_at": "2026-11-22T14:21:10Z"}
MESSAGE = {"op": "answer", "id": "q", "dag_id": "chat", "run_id": "r1", "task_id": "ask", **ANSWER}


@pytest.fixture
def responses(stub: AirflowStub, permissions: object) -> list[Any]:
    """Airflow's answers to PATCH requests; the last one is repeated."""
    answers: list[Any] = [JSONResponse(WRITTEN)]
    before = stub.instead
    assert before is not None

    async def respond(received: ReceivedRequest) -> Any:
        if received.method == "PATCH":
            return answers[0] if len(answers) == 1 else answers.pop(0)
        return await before(received)

    stub.instead = respond
    return answers


@pytest.fixture
async def caller(auth_server: RunningServer, ada: CallerPermissions) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(auth_server, ada) as client:
        yield client


@pytest.fixture
async def socket(auth_server: RunningServer, ada: CallerPermissions) -> AsyncIterator[ClientConnection]:
    address = auth_server.url.replace("http", "ws", 1) + "/api/v2/stream"
    async with connect(address, additional_headers=ada.headers, proxy=None) as connection:
        yield connection


async def receive(socket: ClientConnection) -> dict[str, Any]:
    while (frame := json.loads(await socket.recv()))["type"] == "ping":
        pass
    return dict(frame)


async def test_an_answer_is_passed_to_airflow_with_the_rights_of_the_caller(
    caller: httpx.AsyncClient, responses: list[Any], stub: AirflowStub, ada: CallerPermissions
) -> None:
    asked_at = "2026-11-22T14:20:00.123456Z"
    response = await caller.post(f"{INPUT}?map_index=3", json={**ANSWER, "asked_at": asked_at})
    assert response.status_code == 200
    (patch,) = stub.patches
    assert patch.target == f"{PATH}/3/hitlDetails"
    assert patch.headers["authorization"] == f"Bearer {ada.token}"
    assert patch.json == {**ANSWER, "request_created_at": asked_at}
    assert response.json() == {
        "dag_id": "chat",
        "dag_run_id": "r1",
        "task_id": "ask",
        "map_index": 3,
        "answered_at": "2026-11-22T14:21:10Z",
        "by": {"id": "1", "name": "Ada"},
        **ANSWER,
    }


async def test_an_answer_to_an_iteration_of_a_loop_names_its_region(
    caller: httpx.AsyncClient, responses: list[Any], stub: AirflowStub
) -> None:
    response = await caller.post(f"{INPUT}?iteration=1", json=ANSWER)
    assert (response.status_code, response.json()["iteration"]) == (200, 1)
    (patch,) = stub.patches
    assert patch.target == f"{PATH}/-1/hitlDetails?region_id={REGION_ID}&region_index=1"
    unknown = await caller.post(f"{INPUT}?iteration=3", json=ANSWER)
    assert unknown.status_code == 404
    assert "no instance of task 'ask' in iteration 3" in unknown.json()["detail"]
    invalid = await caller.post(f"{INPUT}?iteration=-1", json=ANSWER)
    assert invalid.status_code == 422
    assert len(stub.patches) == 1


@pytest.mark.parametrize(
    ("status", "ours"), [(400, 422), (401, 401), (403, 403), (404, 404), (409, 409), (422, 422), (500, 502)]
)
async def test_a_refusal_has_the_text_of_airflow(
    caller: httpx.AsyncClient, responses: list[Any], status: int, ours: int
) -> None:
    responses[:] = [JSONResponse({"detail": "Not so"}, status)]
    response = await caller.post(INPUT, json=ANSWER)
    assert (response.status_code, response.headers["content-type"]) == (ours, "application/problem+json")
    assert "Not so" in response.json()["detail"]
    assert ("www-authenticate" in response.headers) == (ours == 401)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"chosen_options":[]}', b'{"chosen_options":"Approve"}', b'{"chosen_options":["a"],"x":1}'],
)
async def test_an_invalid_answer_is_not_passed_on(
    caller: httpx.AsyncClient, responses: list[Any], stub: AirflowStub, body: bytes
) -> None:
    response = await caller.post(INPUT, content=body)
    assert (response.status_code, response.json()["title"]) == (422, "Bad request")
    assert stub.patches == []


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"chosen_options": ["Maybe"]}, 422, "['Maybe'] are no options of the request; it has ['Approve', 'Reject']"),
        ({"chosen_options": ["Approve", "Reject"]}, 422, "permits one option"),
        ({"chosen_options": ["Approve"], "params_input": {"why": 1}}, 422, "must have the fields ['reason']"),
        ({"chosen_options": ["Approve"], "asked_at": "2026-11-22T14:20:00.123455Z"}, 409, "has asked again"),
        ({"chosen_options": ["Approve"], "asked_at": "2026-11-22T15:20:00.123456+01:00"}, 200, ""),
        ({"chosen_options": ["Approve"], "asked_at": "2026-11-22T14:20:00.123456"}, 200, ""),
        ({"chosen_options": ["Approve"], "params_input": {"reason": None}}, 200, ""),
    ],
)
async def test_an_answer_that_would_fail_the_task_is_refused_on_every_airflow(
    caller: httpx.AsyncClient, stub: AirflowStub, responses: list[Any], answer: dict[str, Any], status: int, text: str
) -> None:
    before, asked_at = stub.instead, "2026-11-22T14:20:00.123456Z"
    assert before is not None
    request = {"options": ["Approve", "Reject"], "created_at": asked_at, "multiple": False, "params": {"reason": {}}}

    async def respond(received: ReceivedRequest) -> Any:
        is_read = (received.method, received.target) == ("GET", f"{PATH}/-1/hitlDetails")
        return JSONResponse(request) if is_read else await before(received)

    stub.instead = respond
    response = await caller.post(INPUT, json=answer)
    assert response.status_code == status
    assert text in response.json().get("detail", "")
    assert len(stub.patches) == (status == 200)
    # Airflow's own text names the user that was faster.
    request |= {"response_received": True}
    responses[:] = [JSONResponse({"detail": "Not so"}, 409)]
    assert (await caller.post(INPUT, json=answer)).status_code == 409


@pytest.mark.parametrize("query", ["?map_index=-2", "?map_index=x", "?index=1"])
async def test_a_wrong_parameter_is_refused(
    caller: httpx.AsyncClient, responses: list[Any], stub: AirflowStub, query: str
) -> None:
    assert (await caller.post(INPUT + query, json=ANSWER)).json()["title"] == "Bad parameter"
    assert stub.patches == []


async def test_a_page_of_another_origin_answers_nothing(
    caller: httpx.AsyncClient, responses: list[Any], stub: AirflowStub
) -> None:
    response = await caller.post(INPUT, json=ANSWER, headers={"Origin": "https://evil.example"})
    assert (response.status_code, response.json()["title"]) == (403, "Foreign origin")
    assert stub.patches == []


async def test_the_python_client_answers(
    auth_server: RunningServer, responses: list[Any], stub: AirflowStub, ada: CallerPermissions
) -> None:
    written = await answer_input(
        auth_server.url, "chat", "r1", "ask", ["Approve"], params_input={"reason": "fine"}, token=ada.token
    )
    assert (written["by"], stub.patches[0].json) == ({"id": "1", "name": "Ada"}, ANSWER)
    responses[:] = [JSONResponse({"detail": "Not so"}, 409)]
    with pytest.raises(Refused, match="Not so") as refused:
        await answer_input(auth_server.url, "chat", "r1", "ask", ["Approve"], token=ada.token)
    assert refused.value.status == 409


async def test_an_answer_over_a_websocket(
    socket: ClientConnection, responses: list[Any], stub: AirflowStub, ada: CallerPermissions
) -> None:
    await socket.send(json.dumps({**MESSAGE, "map_index": 2}))
    assert await receive(socket) == {"type": "ack", "op": "answer", "id": "q"}
    (patch,) = stub.patches
    assert (patch.target, patch.json) == (f"{PATH}/2/hitlDetails", ANSWER)
    assert patch.headers["authorization"] == f"Bearer {ada.token}"


@pytest.mark.parametrize(("status", "ours"), [(409, 409), (403, 403), (404, 404), (400, 422)])
async def test_a_refusal_over_a_websocket_closes_nothing(
    socket: ClientConnection, responses: list[Any], status: int, ours: int
) -> None:
    responses[:] = [JSONResponse({"detail": "Not so"}, status), JSONResponse(WRITTEN)]
    await socket.send(json.dumps(MESSAGE))
    refusal = await receive(socket)
    assert (refusal["type"], refusal["id"], refusal["status"]) == ("error", "q", ours)
    assert "Not so" in refusal["detail"]
    await socket.send(json.dumps({**MESSAGE, "id": "again"}))
    assert await receive(socket) == {"type": "ack", "op": "answer", "id": "again"}


@pytest.mark.parametrize("change", [{"chosen_options": []}, {"map_index": -2}, {"task_id": None}, {"extra": 1}])
async def test_an_invalid_message_is_not_passed_on(
    socket: ClientConnection, responses: list[Any], stub: AirflowStub, change: dict[str, Any]
) -> None:
    await socket.send(json.dumps({**MESSAGE, **change}))
    refusal = await receive(socket)
    assert (refusal["type"], refusal["id"], refusal["status"]) == ("error", "q", 422)
    assert stub.patches == []


async def test_a_slow_airflow_delays_no_other_message(
    socket: ClientConnection, stub: AirflowStub, permissions: object
) -> None:
    async def hang(received: ReceivedRequest) -> None:
        await stub.hang()

    stub.instead = hang
    await socket.send(json.dumps(MESSAGE))
    await socket.send('{"op":"ping","id":"p"}')
    assert await receive(socket) == {"type": "ack", "op": "ping", "id": "p"}


async def test_a_ticket_permits_no_answer_until_a_token_comes(
    auth_server: RunningServer,
    caller: httpx.AsyncClient,
    responses: list[Any],
    stub: AirflowStub,
    ada: CallerPermissions,
) -> None:
    ticket = (await caller.post("/api/v2/stream/tickets", json={"paths": ["/api/v2/stream"]})).json()["ticket"]
    address = auth_server.url.replace("http", "ws", 1) + f"/api/v2/stream?ticket={ticket}"
    async with connect(address, proxy=None) as socket:
        await socket.send(json.dumps(MESSAGE))
        refusal = await receive(socket)
        assert (refusal["type"], refusal["id"], refusal["status"]) == ("error", "q", 403)
        assert refusal["title"] == "Ticket only reads"
        assert stub.patches == []
        await socket.send(json.dumps({"op": "auth", "token": ada.token}))
        assert (await receive(socket))["op"] == "auth"
        await socket.send(json.dumps(MESSAGE))
        assert await receive(socket) == {"type": "ack", "op": "answer", "id": "q"}
    assert len(stub.patches) == 1


async def test_an_anonymous_caller_is_refused(auth_server: RunningServer, responses: list[Any]) -> None:
    responses[:] = [JSONResponse({"detail": "Not authenticated"}, 401)]
    async with client_for(auth_server) as client:
        assert (await client.post(INPUT, json=ANSWER)).status_code == 401
