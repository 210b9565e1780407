"""The Model Context Protocol as bytes: what clients may send wrong, tasks, and responses that are resumed."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from httpx_sse import aconnect_sse

from stream_server.domain.run_state import RunKey
from stream_server.http.mcp.references import CallReference, encode_reference
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run, wait_for_cancellation_decision
from support.chat_runs import ask_human, begin_answer
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions, client_for
from support.waiting import eventually_answered

MODERN = "2026-07-28"
TASKS = "io.modelcontextprotocol/tasks"
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "t", "version": "1"},
}
JSON_AND_SSE = {"Accept": "application/json, text/event-stream"}


@pytest.fixture
async def caller(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql
) -> AsyncIterator[httpx.AsyncClient]:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")
    async with client_for(auth_server, ada) as client:
        yield client


def build_message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def build_modern(
    method: str, *, extensions: dict[str, Any] | None = None, **params: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a message of revision 2026-07-28, and its headers."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions or {}},
    }
    headers = {**JSON_AND_SSE, "MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    if "name" in params:
        headers["Mcp-Name"] = params["name"]
    return build_message(method, _meta=meta, **params), headers


async def send_modern(caller: httpx.AsyncClient, method: str, **params: Any) -> Any:
    if method.startswith("tasks/"):
        params["extensions"] = {TASKS: {}}
    message, headers = build_modern(method, **params)
    return (await caller.post("/mcp", json=message, headers=headers)).json()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
        (b'{"jsonrpc":"2.0","id":"x","result":{}}', -32600),
    ],
)
async def test_a_body_that_is_no_message_is_refused(caller: httpx.AsyncClient, body: bytes, code: int) -> None:
    response = await caller.post("/mcp", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


async def test_headers_must_fit_the_message(caller: httpx.AsyncClient) -> None:
    message, headers = build_modern("tools/call", name="chat", arguments={})
    for wrong, code in (
        ({"Mcp-Method": "tools/list"}, -32020),
        ({"Mcp-Name": "other"}, -32020),
        ({"MCP-Protocol-Version": "2025-11-25"}, -32020),
    ):
        response = await caller.post("/mcp", json=message, headers={**headers, **wrong})
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2030-01-01"
    response = await caller.post("/mcp", json=message, headers={**headers, "MCP-Protocol-Version": "2030-01-01"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32022)
    assert MODERN in response.json()["error"]["data"]["supported"]
    del message["params"]["_meta"]
    response = await caller.post("/mcp", json=message, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)


async def test_unknown_methods_and_sessions_are_refused(caller: httpx.AsyncClient) -> None:
    message, headers = build_modern("tools/nothing")
    response = await caller.post("/mcp", json=message, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (404, -32601)
    response = await caller.post(
        "/mcp", json=build_message("initialize"), headers=headers | {"Mcp-Method": "initialize"}
    )
    assert response.status_code == 400
    unknown = {"Mcp-Session-Id": "unknown", "MCP-Protocol-Version": "2025-11-25"}
    response = await caller.post("/mcp", json=build_message("tools/list"), headers=unknown)
    assert response.status_code == 404
    unknown = {"MCP-Protocol-Version": "1999-01-01"}
    response = await caller.post("/mcp", json=build_message("tools/list"), headers=unknown)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32022)
    nested = base64.urlsafe_b64encode(b'["2025-11-25",true,' + b"[" * 2900).decode()
    response = await caller.post("/mcp", json=build_message("tools/list"), headers={"Mcp-Session-Id": nested})
    assert response.status_code == 404
    assert (await caller.get("/mcp", headers={"Accept": "text/event-stream"})).status_code == 405
    assert (await caller.delete("/mcp")).status_code == 405


async def test_the_caller_needs_a_credential(auth_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=auth_server.url) as client:
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        for message in (build_message("tools/list"), build_message("ping"), build_message("initialize"), cancelled):
            response = await client.post("/mcp", json=message)
            assert response.status_code == 401, message
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
        foreign = {"Origin": "https://elsewhere.example"}
        assert (await client.post("/mcp", json=build_message("ping"), headers=foreign)).status_code == 403
        assert (await client.get("/mcp", headers=foreign)).status_code == 403


async def test_a_client_without_credential_finds_the_authorization_servers(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions
) -> None:
    """Clients that get tokens themselves look for them there (RFC 9728)."""
    listed = "https://login.example.com/realms/a"
    configured = settings(airflow_url=stub.url, url_prefix="/airflow", mcp_authorization_servers=listed)
    async with running_server(configured) as server, httpx.AsyncClient(base_url=f"{server.url}/airflow") as client:
        refused = [
            await client.post("/mcp", json=build_message("ping")),
            await client.post("/mcp", json=build_message("ping"), headers={"Authorization": "Bearer of.another.user"}),
            await client.get("/mcp", headers={"Last-Event-ID": encode_reference(CallReference("chat", "r", 1))}),
        ]
        for response in refused:
            assert response.status_code == 401
            challenge = response.headers["WWW-Authenticate"]
            address = challenge.removeprefix('Bearer resource_metadata="').removesuffix('"')
            assert address == f"{server.url}/airflow/.well-known/oauth-protected-resource/mcp", challenge
            found = (await client.get(address)).json()
            assert (found["resource"], found["authorization_servers"]) == (f"{server.url}/airflow/mcp", [listed])


async def test_without_authorization_servers_there_is_no_metadata(auth_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=auth_server.url) as client:
        assert (await client.get("/.well-known/oauth-protected-resource/mcp")).status_code == 404


async def test_a_run_is_a_task(caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub) -> None:
    begun = (await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={}))["result"]
    assert (begun["resultType"], begun["status"], begun["ttlMs"]) == ("task", "working", None)
    task_id = begun["taskId"]
    key = await begin_answer(airflow, stub)
    assert (await send_modern(caller, "tasks/get", taskId=task_id))["result"]["status"] == "working"
    await airflow.push(key, "answer", "done")
    ended = (await send_modern(caller, "tasks/get", taskId=task_id))["result"]
    assert (ended["status"], ended["result"]["content"][0]["text"]) == ("completed", "done")
    assert (await send_modern(caller, "tasks/cancel", taskId=task_id))["result"] == {"resultType": "complete"}
    assert stub.patches[0].json == {"state": "failed"}
    ended = (await send_modern(caller, "tasks/get", taskId=task_id))["result"]
    assert ended["status"] == "completed", "the result came before the cancellation"
    unknown = await send_modern(caller, "tasks/get", taskId="unknown")
    assert unknown["error"]["code"] == -32602


async def test_only_the_task_of_a_client_that_cancels_is_cancelled(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async def read_status(task_id: str) -> object:
        return (await send_modern(caller, "tasks/get", taskId=task_id))["result"]["status"]

    async def has_ended(task_id: str) -> bool:
        return await read_status(task_id) != "working"

    for status in ("cancelled", "completed"):
        task = await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={})
        task_id = task["result"]["taskId"]
        if status == "completed":
            # It has failed before.
            assert stub.newest_run is not None
            await airflow.set_run(stub.newest_run, "failed")
            await eventually_answered(partial(has_ended, task_id), what="the run has ended")
        assert (await send_modern(caller, "tasks/cancel", taskId=task_id))["result"] == {"resultType": "complete"}
        await eventually_answered(partial(has_ended, task_id), what="the run has ended")
        assert await read_status(task_id) == status


async def begin_session(caller: httpx.AsyncClient) -> dict[str, str]:
    """Return the headers of a session of the earlier revision."""
    session = await caller.post("/mcp", json=build_message("initialize", **INITIALIZE), headers=JSON_AND_SSE)
    version = {"MCP-Protocol-Version": session.json()["result"]["protocolVersion"]}
    return {**JSON_AND_SSE, "Mcp-Session-Id": session.headers["Mcp-Session-Id"], **version}


async def test_tools_that_are_quick_become_no_tasks(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool:no-task')")
    stub.then = complete_run
    message, headers = build_modern("tools/call", extensions={TASKS: {}}, name="chat", arguments={})
    async with aconnect_sse(caller, "POST", "/mcp", json=message, headers=headers) as events:
        (answer,) = [json.loads(event.data) async for event in events.aiter_sse() if event.data]
    assert answer["result"]["structuredContent"] == {"text": "because"}
    listed = await caller.post("/mcp", json=build_message("tools/list"), headers={"MCP-Protocol-Version": "2025-11-25"})
    assert [tool["execution"] for tool in listed.json()["result"]["tools"][:-1]] == [{"taskSupport": "forbidden"}]
    headers = await begin_session(caller)
    for name in ("chat", "wait_for_dag_run"):
        message = build_message("tools/call", name=name, arguments={"run": "dag-run://a/b"}, task={"ttl": 60_000})
        refused = await caller.post("/mcp", json=message, headers=headers)
        assert refused.json()["error"]["code"] == -32601
    assert len(stub.triggers) == 1, "no run is left behind"


async def test_a_task_of_the_earlier_revision(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    stub.then = complete_run
    headers = await begin_session(caller)
    message = build_message("tools/call", name="chat", arguments={}, task={"ttl": 60_000})
    task = (await caller.post("/mcp", json=message, headers=headers)).json()["result"]["task"]
    found = await caller.post("/mcp", json=build_message("tasks/get", taskId=task["taskId"]), headers=headers)
    assert found.json()["result"]["status"] == "completed"
    wanted = build_message("tasks/result", taskId=task["taskId"])
    async with aconnect_sse(caller, "POST", "/mcp", json=wanted, headers=headers) as events:
        answers = [json.loads(event.data) async for event in events.aiter_sse() if event.data]
    assert answers[-1]["result"]["structuredContent"] == {"text": "because"}
    assert answers[-1]["result"]["_meta"] == {"io.modelcontextprotocol/related-task": {"taskId": task["taskId"]}}
    cancelled = await caller.post("/mcp", json=build_message("tasks/cancel", taskId=task["taskId"]), headers=headers)
    assert "error" in cancelled.json(), "the run has ended with success"


async def test_a_response_is_resumed_after_an_event(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    message = build_message("tools/call", name="chat", arguments={}, _meta={"progressToken": "p"})
    headers = {**JSON_AND_SSE, "MCP-Protocol-Version": "2025-11-25"}
    async with aconnect_sse(caller, "POST", "/mcp", json=message, headers=headers) as events:
        first = await anext(aiter(events.aiter_sse()))
    assert (first.data, bool(first.id)) == ("", True)
    key = await begin_answer(airflow, stub)
    await airflow.push(key, "answer", "later")
    resumed = {"Accept": "text/event-stream", "Last-Event-ID": first.id}
    async with aconnect_sse(caller, "GET", "/mcp", headers=resumed) as events:
        answers = [json.loads(event.data) async for event in events.aiter_sse() if event.data]
    assert answers[-1]["id"] == 7
    assert answers[-1]["result"]["content"][0]["text"] == "later"
    assert stub.patches == [], "a disconnect does not cancel in this revision"


async def test_a_call_without_an_answer_asks_again(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    async def call(**params: Any) -> Any:
        message, headers = build_modern("tools/call", name="chat", arguments={}, **params)
        capabilities: dict[str, Any] = {"elicitation": {}}
        message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities
        async with caller.stream("POST", "/mcp", json=message, headers=headers) as response:
            answers = [line.removeprefix("data: ") async for line in response.aiter_lines() if "{" in line]
        return json.loads(answers[-1])

    async def ask(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.set_run(key, "running")
        await ask_human(airflow, key)

    stub.then = ask
    first = (await call())["result"]
    assert [*first["inputRequests"]] == ["ask"], "the key is the task"
    other = {"other": {"action": "accept", "content": {}}}
    again = (await call(requestState=first["requestState"], inputResponses=other))["result"]
    assert again["inputRequests"] == first["inputRequests"]
    for response in ({"action": "maybe"}, {"action": "accept", "content": {}}):
        refused = await call(requestState=first["requestState"], inputResponses={"ask": response})
        assert refused["error"]["code"] == -32602
    declined = await call(requestState=first["requestState"], inputResponses={"ask": {"action": "decline"}})
    assert declined["result"]["isError"]
    assert len(stub.triggers) == 1
    assert stub.patches == []


async def test_each_caller_needs_their_own_rights(
    caller: httpx.AsyncClient, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    begun = (await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={}))["result"]
    await airflow.push(await begin_answer(airflow, stub), "answer", "secret")
    ada.known = ()
    ada.forbid()

    async def is_refused() -> bool:
        found = await send_modern(caller, "tasks/get", taskId=begun["taskId"])
        return "secret" not in json.dumps(found) and "error" in found

    await eventually_answered(is_refused, what="the permission is checked again")
    listed = await send_modern(caller, "tools/list")
    assert "chat" not in json.dumps(listed)
    called = await send_modern(caller, "tools/call", name="chat", arguments={})
    assert "secret" not in json.dumps(called)
    assert len(stub.triggers) == 1


async def test_a_value_that_the_caller_may_not_read_is_no_result(
    caller: httpx.AsyncClient, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    begun = (await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={}))["result"]
    key = await begin_answer(airflow, stub)
    await airflow.push(key, "answer", "secret")
    ada.forbid_xcoms()
    uri = f"dag-run://{key.dag_id}/{quote(key.run_id, safe='')}/result"
    message, headers = build_modern("resources/read", uri=uri)

    async def is_refused() -> bool:
        response = await caller.post("/mcp", json=message, headers={**headers, "Mcp-Name": uri})
        return "error" in response.json()

    await eventually_answered(is_refused, what="the permission is checked again")
    found = await send_modern(caller, "tasks/get", taskId=begun["taskId"])
    assert "secret" not in json.dumps(found)


async def test_results_fit_the_schema_that_the_author_has_given(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    """Clients refuse a result without structured content, unless it is an error."""
    await airflow.connection.execute(
        "UPDATE serialized_dag SET data = jsonb_set(data::jsonb, '{dag,doc_md}', to_jsonb($1::text))::json"
        " WHERE dag_id = 'chat'",
        '```json output-schema\n{"type": "object"}\n```',
    )
    message, headers = build_modern("tools/call", name="chat", arguments={})
    large = {"text": "word " * 20_000}
    for value in (large, "text"):
        stub.received.clear()

        async def push(airflow: AirflowSql, key: RunKey, value: Any = value) -> None:
            await airflow.set_run(key, "running")
            await airflow.start_task(key, "answer")
            await airflow.push(key, "answer", value)

        stub.then = push
        async with aconnect_sse(caller, "POST", "/mcp", json=message, headers=headers) as events:
            (answer,) = [json.loads(event.data) async for event in events.aiter_sse() if event.data]
        result = answer["result"]
        assert result.get("structuredContent") == (value if isinstance(value, dict) else None)
        assert result.get("isError", False) == (not isinstance(value, dict))


async def test_tasks_and_resumed_responses_fit_the_schema(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    await airflow.connection.execute(
        "UPDATE serialized_dag SET data = jsonb_set(data::jsonb, '{dag,doc_md}', to_jsonb($1::text))::json"
        " WHERE dag_id = 'chat'",
        '```json output-schema\n{"type": "object"}\n```',
    )
    message = build_message("tools/call", name="chat", arguments={})
    headers = {**JSON_AND_SSE, "MCP-Protocol-Version": "2025-11-25"}
    async with aconnect_sse(caller, "POST", "/mcp", json=message, headers=headers) as events:
        first = await anext(aiter(events.aiter_sse()))
    await airflow.push(await begin_answer(airflow, stub), "answer", "no object")
    async with aconnect_sse(caller, "GET", "/mcp", headers={"Last-Event-ID": first.id}) as events:
        answers = [json.loads(event.data) async for event in events.aiter_sse() if event.data]
    assert answers[-1]["result"]["isError"], "clients refuse it without structured content"

    stub.received.clear()
    task = await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={})
    await airflow.push(await begin_answer(airflow, stub), "answer", "no object")
    found = await send_modern(caller, "tasks/get", taskId=task["result"]["taskId"])
    assert found["result"]["result"]["isError"]
    assert found["result"]["taskId"] == task["result"]["taskId"]


async def test_only_the_call_that_has_started_a_run_cancels_it(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    await send_modern(caller, "tools/call", extensions={TASKS: {}}, name="chat", arguments={})
    key = await begin_answer(airflow, stub)
    state = base64.urlsafe_b64encode(json.dumps([*key]).encode()).decode()
    message, headers = build_modern("tools/call", name="wait_for_dag_run", arguments={}, requestState=state)
    async with caller.stream("POST", "/mcp", json=message, headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
    await wait_for_cancellation_decision()
    assert stub.patches == []
    message, headers = build_modern("tools/call", name="other", arguments={}, requestState=state)
    response = await caller.post("/mcp", json=message, headers=headers)
    assert response.json()["error"]["code"] == -32602
