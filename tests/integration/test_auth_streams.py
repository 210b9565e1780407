"""Permissions are checked again during a stream, also while Airflow is unavailable."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.server import RunningServer
from support.streams import Events, frames_of, sse, stream_path, types, websocket
from support.stub_callers import CallerPermissions, StubPermissions, client_for, unsigned_jwt
from support.waiting import eventually_async

ENDS: dict[str, tuple[Callable[[CallerPermissions], None], int, bool]] = {
    "logout": (CallerPermissions.revoke, 4501, False),
    "expiry": (CallerPermissions.expire, 4501, False),
    "permission": (CallerPermissions.forbid, 4503, False),
    "XComs": (CallerPermissions.forbid_xcoms, 4007, True),
}


@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize("transport", ["sse", "ndjson", "websocket"])
async def test_a_stream_ends_when_its_permission_is_lost(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions, transport: str, what: str
) -> None:
    end, code, reconnect = ENDS[what]
    if transport == "websocket":
        async with websocket(auth_server.url, key, headers=ada.headers) as connection:
            assert json.loads(await connection.recv())["type"] == "snapshot"
            end(ada)
            frames = await frames_of(connection)
            assert connection.close_code == code
    else:
        accept = {"Accept": "application/x-ndjson"} if transport == "ndjson" else {}
        async with (
            client_for(auth_server, ada) as client,
            client.stream("GET", stream_path(key), headers=accept) as response,
        ):
            lines = response.aiter_lines() if accept else None
            if lines is None:
                events = Events(response)
                await events.next()
                end(ada)
                frames = await events.rest()
            else:
                await anext(lines)
                end(ada)
                frames = [json.loads(line) async for line in lines]
    assert types(frames)[-1] == "close"
    assert (frames[-1]["code"], frames[-1]["reconnect"]) == (code, reconnect)
    await eventually_async(lambda: auth_server.hub.statistics().subscriptions == 0)


@pytest.mark.parametrize(("what", "status"), [("logout", 403), ("expiry", 401), ("permission", 403)])
async def test_a_waiting_call_ends_with_the_status_of_a_new_request(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions, what: str, status: int
) -> None:
    async with client_for(auth_server, ada) as client:
        waiting = asyncio.create_task(client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?timeout=20s"))
        await eventually_async(lambda: auth_server.hub.statistics().subscriptions == 1)
        ENDS[what][0](ada)
        answer = await waiting
    # Airflow responds 403 to a revoked token; both statuses mean that it is invalid.
    assert answer.status_code == (401 if what == "logout" else status)


async def test_without_airflow_streams_continue_for_a_while_and_none_starts(
    auth_server: RunningServer, airflow: AirflowSql, key: RunKey, ada: CallerPermissions, permissions: StubPermissions
) -> None:
    async with sse(auth_server.url, key, headers=ada.headers) as events:
        await events.next()
        permissions.down = JSONResponse({"detail": "down"}, 500)
        async with client_for(auth_server, ada) as client:

            async def refused() -> httpx.Response | None:
                answer = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?timeout=0")
                return answer if answer.status_code == 503 else None

            answer = None
            while answer is None:
                answer = await refused()
            assert (answer.json()["title"], answer.headers["retry-after"]) == ("Permission unknown", "2")
            source = await client.get(stream_path(key), headers={"Accept": "text/event-stream"})
            assert source.status_code == 200
            assert '"code":4003' in source.text
        await airflow.set_run(key, "running")
        assert "run" in types(await events.until("run"))
        last = (await events.rest())[-1]
    assert (last["type"], last["code"], last["reconnect"]) == ("close", 4003, True)


async def test_an_airflow_that_returns_in_time_ends_no_stream(
    auth_server: RunningServer,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
    permissions: StubPermissions,
    stub: AirflowStub,
) -> None:
    async with sse(auth_server.url, key, headers=ada.headers) as events:
        await events.next()
        permissions.down = JSONResponse({"detail": "down"}, 500)
        before = len(stub.received)
        await eventually_async(lambda: len(stub.received) > before + 2)
        permissions.down = None
        before = len(stub.received)
        await eventually_async(lambda: len(stub.received) > before + 4)
        await airflow.complete_chain(key)
        assert (await events.rest())[-1]["type"] == "end"


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_an_expiring_token_is_announced(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions, permissions: StubPermissions, transport: str
) -> None:
    ada.token = unsigned_jwt(sub="ada", exp=time.time() + 61)
    if transport == "sse":
        async with sse(auth_server.url, key, headers=ada.headers) as events:
            await events.next()
            last = (await events.rest())[-1]
            assert (last["type"], last["code"], last["reconnect"]) == ("close", 4006, True)
        async with sse(auth_server.url, key, headers=ada.headers) as events:
            # Announced once: the caller authenticated again with the same token.
            assert types([await events.next() for _ in range(8)]).count("close") == 0
        return
    async with websocket(auth_server.url, key, headers=ada.headers) as connection:
        frame: dict[str, Any] = {}
        while frame.get("type") != "auth_expiring":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        fresh = CallerPermissions(unsigned_jwt(sub="ada", jti="2"))
        permissions.callers.append(fresh)
        await connection.send(json.dumps({"op": "auth", "id": "n", "token": fresh.token}))
        while frame["type"] != "ack":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        assert frame == {"type": "ack", "op": "auth", "id": "n"}
        ada.expire()
        assert types([json.loads(await connection.recv()) for _ in range(8)]) == ["ping"] * 8
