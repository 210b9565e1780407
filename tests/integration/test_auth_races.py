"""Callers that change their credential or disconnect during look-ups, and an Airflow that throttles look-ups."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.responses import Response
from websockets.asyncio.client import ClientConnection, connect

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Frame, sse, types
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.waiting import eventually_async

KEY = RunKey("chat", "r1")


@pytest.fixture
def ada() -> CallerPermissions:
    return CallerPermissions()


@pytest.fixture
def bob() -> CallerPermissions:
    """A caller that cannot read `chat`."""
    return CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})


class HeldRequests:
    """Delays some requests until the test sets `release`."""

    def __init__(self, permissions: StubPermissions) -> None:
        self._permissions = permissions
        self.is_held: Callable[[ReceivedRequest], bool] = lambda _: False
        self.held = 0
        self.release = asyncio.Event()

    async def __call__(self, received: ReceivedRequest) -> Response | None:
        if self.is_held(received):
            self.held += 1
            await asyncio.wait_for(self.release.wait(), DEADLINE)
        return await self._permissions(received)


@pytest.fixture
def permissions(ada: CallerPermissions, bob: CallerPermissions) -> StubPermissions:
    return StubPermissions(ada, bob)


@pytest.fixture
def held_requests(stub: AirflowStub, permissions: StubPermissions) -> HeldRequests:
    stub.instead = requests = HeldRequests(permissions)
    return requests


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings], stub: AirflowStub, held_requests: HeldRequests, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    await airflow.trigger(KEY, stub.version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url, auth_cache="200ms", auth_grace="30s")) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


def multiplex(server: RunningServer, caller: CallerPermissions) -> connect:
    address = f"{server.url.replace('http', 'ws', 1)}/api/v2/stream"
    return connect(address, additional_headers=caller.headers, proxy=None)


async def send(connection: ClientConnection, **what: object) -> None:
    await connection.send(json.dumps(what))


async def receive(connection: ClientConnection, kind: str) -> Frame:
    frame: Frame = {}
    while frame.get("type") != kind:
        frame = json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))
    return frame


async def test_a_stream_that_starts_uses_the_callers_newest_credential(
    auth_server: RunningServer, held_requests: HeldRequests, ada: CallerPermissions, bob: CallerPermissions
) -> None:
    held_requests.is_held = lambda received: (
        ada.token in received.headers["authorization"] and "xcomEntries" in received.target
    )
    async with multiplex(auth_server, ada) as connection:
        await send(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await eventually_async(lambda: held_requests.held, what="a look-up for ada is held")
        await send(connection, op="auth", id="bob", token=bob.token)
        assert (await receive(connection, "ack"))["id"] == "bob"
        held_requests.release.set()
        close = await receive(connection, "close")
        assert (close["id"], close["code"]) == ("run", 4503)


async def test_other_streams_continue_when_one_ends_during_reauthentication(
    auth_server: RunningServer, held_requests: HeldRequests, permissions: StubPermissions, ada: CallerPermissions
) -> None:
    again = CallerPermissions(unsigned_jwt(sub="ada", jti="2"))
    permissions.callers.append(again)
    async with multiplex(auth_server, ada) as connection:
        await send(connection, op="subscribe", id="all")
        await send(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await receive(connection, "snapshot")
        checks: list[ReceivedRequest] = []

        def is_held(received: ReceivedRequest) -> bool:
            if again.token not in received.headers["authorization"] or "/dags/~/" not in received.target:
                return False
            checks.append(received)
            # The first request checks the token.
            return len(checks) > 1

        held_requests.is_held = is_held
        await send(connection, op="auth", id="again", token=again.token)
        await eventually_async(lambda: held_requests.held, what="a look-up for the stream of all runs is held")
        ada.dags = refusal(403, "Forbidden")
        assert (await receive(connection, "close"))["id"] == "all"
        held_requests.release.set()
        assert (await receive(connection, "ack"))["id"] == "again"


async def test_streams_outlast_an_airflow_that_throttles_look_ups(
    auth_server: RunningServer,
    airflow: AirflowSql,
    permissions: StubPermissions,
    ada: CallerPermissions,
    stub: AirflowStub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "stream_server.auth.airflow_authorizer")
    async with (
        sse(auth_server.url, KEY, headers=ada.headers) as events,
        httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers) as client,
    ):
        await events.next()
        permissions.down = refusal(429, "Slow down")
        before = len(stub.received)
        await eventually_async(lambda: len(stub.received) > before + 4, what="Airflow refuses look-ups")
        answer = await client.get(f"/api/v2/dags/{KEY.dag_id}/dagRuns/{KEY.run_id}/result")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        permissions.down = None
        await airflow.complete_chain(KEY)
        assert types(await events.rest())[-1] == "end"
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "stream_server.auth.airflow_authorizer"
    ]
    assert len(warnings) == 1
    assert "429" in warnings[0]
    assert ada.token not in caplog.text


async def test_no_permission_is_looked_up_for_disconnected_callers(
    auth_server: RunningServer,
    airflow: AirflowSql,
    permissions: StubPermissions,
    ada: CallerPermissions,
    stub: AirflowStub,
) -> None:
    async with (
        httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers, timeout=DEADLINE) as client,
        client.stream("GET", "/api/v2/stream") as response,
    ):
        assert response.status_code == 200
        permissions.down = refusal(500, "down")
        before = len(stub.received)
        await airflow.set_run(KEY, "running")
        await eventually_async(
            lambda: any("/dags/chat/" in request.target for request in stub.received[before:]),
            what="the DAG is looked up",
        )
    await eventually_async(lambda: not auth_server.hub.statistics().subscriptions, what="the client has disconnected")
    tasks = ("permission ", "revalidation")
    await eventually_async(
        lambda: not any(task.get_name().startswith(tasks) for task in asyncio.all_tasks()),
        what="all look-ups end",
    )
