"""Streams of many runs contain only what their caller can read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response
from websockets.asyncio.client import ClientConnection, connect

from stream_server.auth import readable_dags as readable
from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.server import RunningServer, running_server
from support.streams import Events, Frame
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.waiting import eventually_answered, eventually_async

READABLE, UNREADABLE = RunKey("chat", "r1"), RunKey("secret", "r1")


@pytest.fixture
def ada() -> CallerPermissions:
    return CallerPermissions(of_dag={"secret": refusal(403, "Forbidden")})


@pytest.fixture
def permissions(stub: AirflowStub, ada: CallerPermissions) -> StubPermissions:
    stub.instead = stub_permissions = StubPermissions(ada)
    return stub_permissions


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    version = await airflow.add_dag("secret", CHAIN, {"clean_up": False})
    await airflow.trigger(READABLE, stub.version, list(CHAIN))
    await airflow.trigger(UNREADABLE, version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url, auth_cache="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


@asynccontextmanager
async def all_runs(
    server: RunningServer, caller: CallerPermissions, query: str = "", last: str | None = None
) -> AsyncIterator[Events]:
    headers = {**caller.headers, **({"Last-Event-ID": last} if last else {})}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client,
        client.stream("GET", f"/api/v2/stream{query}") as response,
    ):
        yield Events(response)


async def next_transitions(events: Events, count: int) -> list[Frame]:
    frames: list[Frame] = []
    while len(frames) < count:
        frame = await events.next()
        if frame["type"] != "ping":
            frames.append(frame)
    return frames


@asynccontextmanager
async def multiplex(server: RunningServer, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    address = f"{server.url.replace('http', 'ws', 1)}/api/v2/stream"
    async with connect(address, additional_headers=headers, proxy=None) as connection:
        yield connection


async def send(connection: ClientConnection, **what: Any) -> None:
    await connection.send(json.dumps(what))


async def receive(connection: ClientConnection, kind: str) -> Frame:
    frame: Frame = {}
    while frame.get("type") != kind:
        frame = json.loads(await connection.recv())
    return frame


@pytest.mark.parametrize("query", ["", "?dag_id=chat&dag_id=secret"])
async def test_runs_that_the_caller_cannot_read_are_left_out(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, query: str
) -> None:
    async with all_runs(auth_server, ada, query) as events:
        await events.next()
        for state in ("running", "success"):
            await airflow.set_run(UNREADABLE, state)
            await airflow.set_run(READABLE, state)
        frames = await next_transitions(events, 2)
    assert [(frame["dag_id"], frame["state"]) for frame in frames] == [("chat", "running"), ("chat", "success")]


async def test_replayed_frames_are_filtered_too(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    async with all_runs(auth_server, ada) as events:
        await events.next()
    last = events.ids[-1]
    await airflow.set_run(UNREADABLE, "running")
    await airflow.set_run(READABLE, "running")
    async with all_runs(auth_server, ada, last=last) as events:
        frames = [await events.next() for _ in range(2)]
    assert [(frame["type"], frame.get("dag_id")) for frame in frames] == [("resumed", None), ("run", "chat")]


async def test_a_revoked_and_restored_permission_is_detected(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, stub: AirflowStub
) -> None:
    async with all_runs(auth_server, ada) as events:
        await events.next()
        await airflow.set_run(READABLE, "running")
        await next_transitions(events, 1)
        ada.of_dag["chat"] = refusal(403, "Forbidden")
        del ada.of_dag["secret"]
        state, dag_ids = "failed", list[str]()
        while dag_ids[-3:] != ["secret"] * 3:
            state = "running" if state == "failed" else "failed"
            await airflow.set_run(UNREADABLE, state)
            await airflow.set_run(READABLE, state)
            dag_ids.append((await next_transitions(events, 1))[0]["dag_id"])


async def test_the_stream_of_a_dag_needs_the_permission_for_it(
    auth_server: RunningServer, ada: CallerPermissions
) -> None:
    async with httpx.AsyncClient(base_url=auth_server.url, headers=ada.headers) as client:
        answer = await client.get("/api/v2/dags/secret/stream")
        assert (answer.status_code, answer.json()["detail"]) == (403, "Forbidden")
        ada.dags = refusal(403, "Forbidden")
        assert (await client.get("/api/v2/stream")).status_code == 403
        async with client.stream("GET", "/api/v2/dags/chat/stream") as response:
            assert response.status_code == 200


async def test_a_tag_does_not_reveal_its_dags(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    for dag_id in ("chat", "secret"):
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, 'nightly')", dag_id)
    async with all_runs(auth_server, ada, "?tag=nightly") as events:
        await events.next()
        await airflow.set_run(UNREADABLE, "running")
        await airflow.set_run(READABLE, "running")
        assert [frame["dag_id"] for frame in await next_transitions(events, 1)] == ["chat"]


async def test_each_stream_of_a_connection_is_authorized_separately(
    auth_server: RunningServer, ada: CallerPermissions
) -> None:
    async with multiplex(auth_server, ada.headers) as connection:
        await send(connection, op="subscribe", id="no", dag_id="secret", run_id="r1")
        error = await receive(connection, "error")
        assert (error["id"], error["status"], error["detail"]) == ("no", 403, "Forbidden")
        await send(connection, op="subscribe", id="yes", dag_id="chat", run_id="r1")
        assert (await receive(connection, "snapshot"))["id"] == "yes"


async def test_streams_of_a_connection_end_separately(auth_server: RunningServer, ada: CallerPermissions) -> None:
    async with multiplex(auth_server, ada.headers) as connection:
        await send(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await receive(connection, "snapshot")
        await send(connection, op="subscribe", id="all")
        await receive(connection, "ack")
        ada.of_dag["chat"] = refusal(403, "Forbidden")
        close = await receive(connection, "close")
        assert (close["id"], close["code"]) == ("run", 4503)
        await send(connection, op="ping", id="p")
        assert (await receive(connection, "ack"))["id"] == "p"
        ada.revoke()
        close = await receive(connection, "close")
        assert (close["id"], close["code"]) == ("all", 4501)


async def test_a_connection_continues_with_a_new_token(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, permissions: StubPermissions
) -> None:
    bob = CallerPermissions(unsigned_jwt(sub="bob"), of_dag={"chat": refusal(403, "Forbidden")})
    permissions.callers.append(bob)
    async with multiplex(auth_server, ada.headers) as connection:
        await send(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await receive(connection, "snapshot")
        await send(connection, op="subscribe", id="all")
        await receive(connection, "ack")
        await send(connection, op="auth", id="me", token=bob.token)
        close = await receive(connection, "close")
        assert (close["id"], close["code"]) == ("run", 4503)
        await airflow.set_run(READABLE, "running")
        await airflow.set_run(UNREADABLE, "running")
        frame = await receive(connection, "run")
        assert (frame["id"], frame["dag_id"]) == ("all", "secret")
        await send(connection, op="auth", id="unknown", token="unknown")
        error = await receive(connection, "error")
        assert (error["id"], error["status"]) == ("unknown", 401)


async def test_a_message_that_is_nested_too_deeply_is_refused(
    auth_server: RunningServer, ada: CallerPermissions
) -> None:
    async with multiplex(auth_server, ada.headers) as connection:
        await connection.send('{"a":' + "[" * 30_000)
        assert (await receive(connection, "error"))["status"] == 422
        await send(connection, op="ping", id="p")
        assert (await receive(connection, "ack"))["id"] == "p"


async def test_a_connection_without_credentials_authenticates_by_message(
    auth_server: RunningServer, ada: CallerPermissions
) -> None:
    async with multiplex(auth_server, {}) as connection:
        await send(connection, op="auth", token=ada.token)
        assert (await receive(connection, "ack"))["op"] == "auth"
        await send(connection, op="subscribe", id="a", dag_id="chat", run_id="r1")
        assert (await receive(connection, "snapshot"))["id"] == "a"


# Failing look-ups. The longest grace period of the servers below is 200 ms + 1 s.

NO_RUNS = [Response("<html>Please log in</html>", media_type="text/html"), JSONResponse({"dag_runs": None})]
NO_DAGS = [refusal(500, "down"), JSONResponse({"dags": None}), JSONResponse({"dags": [{"dag_id": 5}]})]
ODD_TOTALS = [{}, {"total_entries": None}, {"total_entries": "many"}]
MOST_LOOK_UPS = 4
"""In 1.2 s and one pause, with the shortest pauses: after 0, 0.5, 1.5 and 3.5 s."""


@pytest.fixture
async def short_grace_server(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    """A server whose streams end soon after the first failed look-up."""
    await airflow.trigger(READABLE, stub.version, list(CHAIN))
    configured = settings(airflow_url=stub.url, auth_cache="200ms", auth_grace="1s", poll_interval="100ms")
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


@pytest.fixture
def bob(permissions: StubPermissions) -> CallerPermissions:
    bob = CallerPermissions(unsigned_jwt(sub="bob"))
    permissions.callers.append(bob)
    return bob


def look_ups(stub: AirflowStub, caller: CallerPermissions, path: str) -> int:
    """Return how often a path was requested with the credential of a caller."""
    matching = [request for request in stub.received if request.target.partition("?")[0] == path]
    return sum(request.headers.get("authorization") == f"Bearer {caller.token}" for request in matching)


async def runs_until_closed(airflow: AirflowSql, events: Events) -> Frame:
    """Change the state of the run until a stream ends; return its last frame."""
    reading, states = asyncio.create_task(events.rest()), ["running", "queued"]

    async def is_closed() -> bool:
        states.reverse()
        await airflow.set_run(READABLE, states[0])
        return reading.done()

    await eventually_answered(is_closed, what="the stream ends")
    return (await reading)[-1]


@pytest.mark.parametrize("odd", NO_RUNS, ids=lambda odd: repr(odd.body[:30]))
async def test_a_stream_whose_permission_stays_unknown_ends_and_others_continue(
    short_grace_server: RunningServer,
    airflow: AirflowSql,
    stub: AirflowStub,
    ada: CallerPermissions,
    bob: CallerPermissions,
    odd: Response,
) -> None:
    ada.of_dag["chat"] = odd
    async with all_runs(short_grace_server, ada) as events, all_runs(short_grace_server, bob) as others:
        await events.next()
        await others.next()
        await airflow.set_run(READABLE, "running")
        assert [frame["state"] for frame in await next_transitions(others, 1)] == ["running"]
        frames = [frame for frame in await events.rest() if frame["type"] != "ping"]
        assert [(frame["type"], frame["code"], frame["reconnect"]) for frame in frames] == [("close", 4003, True)]
        assert 1 <= look_ups(stub, ada, "/api/v2/dags/chat/dagRuns") <= MOST_LOOK_UPS
        await airflow.set_run(READABLE, "success")
        assert [frame["state"] for frame in await next_transitions(others, 1)] == ["success"]


@pytest.mark.parametrize("odd", NO_DAGS, ids=lambda odd: repr(odd.body[:30]))
async def test_a_malformed_list_of_dags_counts_as_no_answer(
    short_grace_server: RunningServer,
    airflow: AirflowSql,
    stub: AirflowStub,
    ada: CallerPermissions,
    bob: CallerPermissions,
    odd: Response,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As with many DAGs: all but the first answer for each DAG come from a list.
    monkeypatch.setattr(readable, "MAX_DIRECT_REQUESTS", 0)
    monkeypatch.setattr(readable, "MAX_RENEWAL_FACTOR", float("inf"))
    ada.listed = odd
    async with all_runs(short_grace_server, ada) as events, all_runs(short_grace_server, bob) as others:
        last = await runs_until_closed(airflow, events)
        assert (last["type"], last["code"], last["reconnect"]) == ("close", 4003, True)
        assert look_ups(stub, ada, "/api/v2/dags/chat/dagRuns") == 1
        assert 1 <= look_ups(stub, ada, "/api/v2/dags") <= MOST_LOOK_UPS
        await airflow.set_run(READABLE, "failed")
        while (await next_transitions(others, 1))[0]["state"] != "failed":
            pass


@pytest.mark.parametrize("total", ODD_TOTALS, ids=repr)
async def test_the_total_of_dags_is_ignored(
    short_grace_server: RunningServer,
    airflow: AirflowSql,
    ada: CallerPermissions,
    stub: AirflowStub,
    total: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readable, "MAX_DIRECT_REQUESTS", 0)
    monkeypatch.setattr(readable, "MAX_RENEWAL_FACTOR", float("inf"))
    ada.listed = JSONResponse({"dags": [{"dag_id": "chat"}], **total})
    async with all_runs(short_grace_server, ada) as events:
        await events.next()
        number = 0
        while look_ups(stub, ada, "/api/v2/dags") < 4:
            number += 1
            state = ("queued", "running")[number % 2]
            await airflow.set_run(READABLE, state)
            assert [frame["state"] for frame in await next_transitions(events, 1)] == [state]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
async def test_a_reconnecting_client_is_refused_while_its_permission_is_unknown(
    short_grace_server: RunningServer,
    airflow: AirflowSql,
    stub: AirflowStub,
    ada: CallerPermissions,
    bob: CallerPermissions,
    accept: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readable, "MAX_WAIT_SECONDS", 0.2)
    async with all_runs(short_grace_server, ada) as events:
        await events.next()
    last = {"Last-Event-ID": str(events.ids[-1])}
    await airflow.set_run(READABLE, "running")
    ada.of_dag["chat"] = JSONResponse({"dag_runs": None})
    async with httpx.AsyncClient(base_url=short_grace_server.url, timeout=15) as client:
        answer = await client.get("/api/v2/stream", headers={**ada.headers, **last, "Accept": accept})
        if accept == "text/event-stream":
            assert (answer.status_code, '"code":4003' in answer.text) == (200, True)
        else:
            assert (answer.status_code, answer.json()["title"]) == (503, "Permission unknown")
            assert answer.headers["retry-after"] == "2"
    assert 1 <= look_ups(stub, ada, "/api/v2/dags/chat/dagRuns") <= 2
    async with all_runs(short_grace_server, bob, last=last["Last-Event-ID"]) as others:
        assert [(await others.next())["type"] for _ in range(2)] == ["resumed", "run"]
