"""Subscriptions of the Model Context Protocol, revision 2026-07-28: tasks and resources without polling."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from mcp.client.subscriptions import ResourceUpdated
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.chat_runs import ask_human, begin_answer
from support.mcp_clients import client_of
from support.server import RunningServer
from support.streams import DEADLINE
from support.stub_callers import CallerPermissions, client_for, refusal

MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"


@pytest.fixture(autouse=True)
async def tagged(airflow: AirflowSql, stub: AirflowStub) -> None:
    """The DAG `chat` of the stub is a tool."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'tool')")


@pytest.fixture
async def caller(auth_server: RunningServer, ada: CallerPermissions) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(auth_server, ada) as client:
        yield client


def build_message(method: str, **params: Any) -> dict[str, Any]:
    """Return the arguments of a POST."""
    capabilities: dict[str, Any] = {"elicitation": {}, "extensions": {f"{META}tasks": {}}}
    meta = {f"{META}protocolVersion": MODERN, f"{META}clientCapabilities": capabilities}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    if "name" in params:
        headers["Mcp-Name"] = params["name"]
    message = {"jsonrpc": "2.0", "id": "s", "method": method, "params": {"_meta": meta, **params}}
    return {"json": message, "headers": {**headers, "Accept": "application/json, text/event-stream"}}


@asynccontextmanager
async def listening(caller: httpx.AsyncClient, **wants: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Yield the messages of a subscription."""

    async def read() -> AsyncIterator[dict[str, Any]]:
        async for event in events.aiter_sse():
            yield json.loads(event.data)

    message = build_message("subscriptions/listen", notifications=wants)
    async with aconnect_sse(caller, "POST", "/mcp", **message) as events:
        yield read()


async def next_params(messages: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the params of the next notification."""
    message = await asyncio.wait_for(anext(messages), DEADLINE)
    params: dict[str, Any] = message["params"]
    assert params.pop("_meta") == {f"{META}subscriptionId": "s"}
    return {"method": message["method"], **params}


async def begin_task(caller: httpx.AsyncClient) -> str:
    response = await caller.post("/mcp", **build_message("tools/call", name="chat", arguments={}))
    return str(response.json()["result"]["taskId"])


async def test_a_client_is_notified_of_its_tasks(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    task_id = await begin_task(caller)
    key = await begin_answer(airflow, stub)
    async with listening(caller, taskIds=[task_id, "unknown", task_id]) as messages:
        acknowledged = await next_params(messages)
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["notifications"] == {"taskIds": [task_id]}
        working = await next_params(messages)
        assert (working["method"], working["taskId"], working["status"]) == ("notifications/tasks", task_id, "working")
        await ask_human(airflow, key)
        asks = await next_params(messages)
        assert asks["status"] == "input_required"
        assert len(asks["inputRequests"]) == 1
        await airflow.answer_input(key, "ask", "Approve")
        assert (await next_params(messages))["status"] == "working"
        await airflow.push(key, "answer", "done")
        completed = await next_params(messages)
        assert (completed["status"], completed["result"]["content"][0]["text"]) == ("completed", "done")
        end = await asyncio.wait_for(anext(messages), DEADLINE)
        assert end["result"] == {"resultType": "complete", "_meta": {f"{META}subscriptionId": "s"}}
        assert [message async for message in messages] == []


async def test_a_cancelled_task_is_cancelled_for_its_subscribers(
    caller: httpx.AsyncClient, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    before = stub.instead
    assert before is not None
    task_id = await begin_task(caller)
    key = await begin_answer(airflow, stub)
    async with listening(caller, taskIds=[task_id]) as messages:

        async def fail(received: ReceivedRequest) -> Response | None:
            """Respond to the cancellation when the subscriber has been notified of the end of the run."""
            if received.method == "PATCH":
                await airflow.set_run(key, "failed")
                notified.append((await next_params(messages))["status"])
                return JSONResponse({"state": "failed"})
            return await before(received)

        notified: list[str] = []
        await next_params(messages)
        assert (await next_params(messages))["status"] == "working"
        stub.instead = fail
        await caller.post("/mcp", **build_message("tasks/cancel", taskId=task_id, name=task_id))
        assert notified == ["cancelled"]
        stub.instead = before
    await airflow.clear(key, ["answer"])
    await airflow.set_run(key, "failed")
    async with listening(caller, taskIds=[task_id]) as messages:
        await next_params(messages)
        while (status := (await next_params(messages))["status"]) == "working":
            pass
    assert status == "completed", "it has failed by itself after a clear"


async def test_a_task_whose_cancellation_airflow_refuses_is_not_cancelled(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    before = stub.instead
    assert before is not None

    async def refuse(received: ReceivedRequest) -> Response | None:
        return refusal(403, "Forbidden") if received.method == "PATCH" else await before(received)

    task_id = await begin_task(caller)
    key = await begin_answer(airflow, stub)
    stub.instead = refuse
    response = await caller.post("/mcp", **build_message("tasks/cancel", taskId=task_id, name=task_id))
    assert "error" in response.json()
    async with listening(caller, taskIds=[task_id]) as messages:
        await next_params(messages)
        assert (await next_params(messages))["status"] == "working"
        await airflow.set_run(key, "failed")
        assert (await next_params(messages))["status"] == "completed"


async def test_the_official_client_is_notified_of_a_run(
    auth_server: RunningServer,
    ada: CallerPermissions,
    caller: httpx.AsyncClient,
    airflow: AirflowSql,
    stub: AirflowStub,
) -> None:
    await begin_task(caller)
    key = await begin_answer(airflow, stub)
    uri = f"dag-run://{key.dag_id}/{key.run_id}"
    async with client_of(auth_server.url, ada.token, MODERN) as client:
        async with client.listen(resource_subscriptions=[uri]) as changes:
            events = aiter(changes)
            await airflow.push(key, "answer", "done")
            assert await asyncio.wait_for(anext(events), DEADLINE) == ResourceUpdated(uri)
            state = await client.read_resource(uri)
            assert '"has_result":true' in state.contents[0].text
            await airflow.set_run(key, "success")
            # The stream ends with the run.
            assert {event async for event in events} <= {ResourceUpdated(uri)}
        assert '"state":"success"' in (await client.read_resource(uri)).contents[0].text


async def test_a_server_that_stops_ends_the_subscription(
    auth_server: RunningServer, caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    task_id = await begin_task(caller)
    await begin_answer(airflow, stub)
    async with listening(caller, taskIds=[task_id]) as messages:
        assert (await next_params(messages))["notifications"] == {"taskIds": [task_id]}
        assert (await next_params(messages))["status"] == "working"
        await auth_server.hub.drain(5)
        assert "result" in await asyncio.wait_for(anext(messages), DEADLINE)


async def test_a_subscription_to_nothing_ends_at_once(caller: httpx.AsyncClient) -> None:
    async with listening(caller, taskIds=["unknown"]) as messages:
        assert (await next_params(messages))["notifications"] == {}
        end = await asyncio.wait_for(anext(messages), DEADLINE)
        assert end["result"]["resultType"] == "complete"


async def test_a_subscription_whose_caller_loses_the_permission_ends_with_an_error(
    caller: httpx.AsyncClient, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    task_id = await begin_task(caller)
    await begin_answer(airflow, stub)
    async with listening(caller, taskIds=[task_id]) as messages:
        await next_params(messages)
        assert (await next_params(messages))["status"] == "working"
        ada.forbid()
        end = await asyncio.wait_for(anext(messages), DEADLINE)
    assert (end["id"], end["error"]["code"]) == ("s", -32603)


async def test_the_id_of_a_task_stays_as_the_client_has_it(
    caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub
) -> None:
    await begin_task(caller)
    key = await begin_answer(airflow, stub)
    task_id = encode_earlier_task_id(key)
    found = await caller.post("/mcp", **build_message("tasks/get", taskId=task_id, name=task_id))
    assert found.json()["result"]["taskId"] == task_id
    async with listening(caller, taskIds=[task_id]) as messages:
        await next_params(messages)
        assert (await next_params(messages))["taskId"] == task_id


def encode_earlier_task_id(key: RunKey) -> str:
    """Return the id of a version whose references had eight members."""
    members = [*key, None, None, 0, None, None, -1]
    return base64.urlsafe_b64encode(json.dumps(members).encode()).decode().rstrip("=")


async def test_a_caller_listens_to_nothing_that_they_may_not_see(
    caller: httpx.AsyncClient, ada: CallerPermissions, airflow: AirflowSql, stub: AirflowStub
) -> None:
    task_id = await begin_task(caller)
    key: RunKey = await begin_answer(airflow, stub)
    ada.of_dag["secret"] = refusal(403, "Forbidden")
    uris = ["dag-run://secret/r", "dag-run://chat/none", "https://example.com", f"dag-run://chat/{key.run_id}"]
    async with listening(caller, taskIds=[task_id], resourceSubscriptions=uris) as messages:
        acknowledged = await next_params(messages)
        assert acknowledged["notifications"] == {"taskIds": [task_id], "resourceSubscriptions": uris[-1:]}
    for wrong in ({"taskIds": [5]}, {"taskIds": "x"}, {"resourceSubscriptions": [str(n) for n in range(21)]}):
        response = await caller.post("/mcp", **build_message("subscriptions/listen", notifications=wrong))
        assert response.json()["error"]["code"] == -32602
