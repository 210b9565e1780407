"""Streams of many runs tell what their caller may read, and no word of anything else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from stream_server.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.callers import Door, Rights, jwt, refused
from support.server import RunningServer, running_server
from support.streams import Events, Frame
from support.waiting import eventually_async

MINE, YOURS = RunKey("chat", "r1"), RunKey("secret", "r1")


@pytest.fixture
def ada() -> Rights:
    return Rights(of_dag={"secret": refused(403, "Forbidden")})


@pytest.fixture
def door(stub: AirflowStub, ada: Rights) -> Door:
    stub.instead = door = Door(ada)
    return door


@pytest.fixture
async def guarded(
    settings: Callable[..., Settings], stub: AirflowStub, door: Door, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    version = await airflow.add_dag("secret", CHAIN, {"clean_up": False})
    await airflow.trigger(MINE, stub.version, list(CHAIN))
    await airflow.trigger(YOURS, version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url, auth_cache="200ms")) as server:
        await eventually_async(lambda: server.hub.live, what="the tail has begun")
        yield server


@asynccontextmanager
async def all_runs(
    server: RunningServer, caller: Rights, query: str = "", last: str | None = None
) -> AsyncIterator[Events]:
    headers = {**caller.headers, **({"Last-Event-ID": last} if last else {})}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client,
        client.stream("GET", f"/api/v2/stream{query}") as response,
    ):
        yield Events(response)


async def told(events: Events, count: int) -> list[Frame]:
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


async def say(connection: ClientConnection, **what: Any) -> None:
    await connection.send(json.dumps(what))


async def hear(connection: ClientConnection, kind: str) -> Frame:
    frame: Frame = {}
    while frame.get("type") != kind:
        frame = json.loads(await connection.recv())
    return frame


@pytest.mark.parametrize("query", ["", "?dag_id=chat&dag_id=secret"])
async def test_what_the_caller_may_not_read_is_left_out(
    guarded: RunningServer, airflow: AirflowSql, ada: Rights, query: str
) -> None:
    async with all_runs(guarded, ada, query) as events:
        await events.next()
        for state in ("running", "success"):
            await airflow.set_run(YOURS, state)
            await airflow.set_run(MINE, state)
        frames = await told(events, 2)
    assert [(frame["dag_id"], frame["state"]) for frame in frames] == [("chat", "running"), ("chat", "success")]


async def test_what_was_missed_is_left_out_too(guarded: RunningServer, airflow: AirflowSql, ada: Rights) -> None:
    async with all_runs(guarded, ada) as events:
        await events.next()
    last = events.ids[-1]
    await airflow.set_run(YOURS, "running")
    await airflow.set_run(MINE, "running")
    async with all_runs(guarded, ada, last=last) as events:
        frames = [await events.next() for _ in range(2)]
    assert [(frame["type"], frame.get("dag_id")) for frame in frames] == [("resumed", None), ("run", "chat")]


async def test_a_permission_that_goes_and_comes_is_noticed(
    guarded: RunningServer, airflow: AirflowSql, ada: Rights, stub: AirflowStub
) -> None:
    async with all_runs(guarded, ada) as events:
        await events.next()
        await airflow.set_run(MINE, "running")
        await told(events, 1)
        ada.of_dag["chat"] = refused(403, "Forbidden")
        del ada.of_dag["secret"]
        state, heard = "failed", list[str]()
        while heard[-3:] != ["secret"] * 3:
            state = "running" if state == "failed" else "failed"
            await airflow.set_run(YOURS, state)
            await airflow.set_run(MINE, state)
            heard.append((await told(events, 1))[0]["dag_id"])


async def test_the_stream_of_a_dag_needs_the_permission_for_it(guarded: RunningServer, ada: Rights) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, headers=ada.headers) as client:
        answer = await client.get("/api/v2/dags/secret/stream")
        assert (answer.status_code, answer.json()["detail"]) == (403, "Forbidden")
        ada.dags = refused(403, "Forbidden")
        assert (await client.get("/api/v2/stream")).status_code == 403
        async with client.stream("GET", "/api/v2/dags/chat/stream") as response:
            assert response.status_code == 200


async def test_a_tag_does_not_tell_who_bears_it(guarded: RunningServer, airflow: AirflowSql, ada: Rights) -> None:
    for dag_id in ("chat", "secret"):
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, 'nightly')", dag_id)
    async with all_runs(guarded, ada, "?tag=nightly") as events:
        await events.next()
        await airflow.set_run(YOURS, "running")
        await airflow.set_run(MINE, "running")
        assert [frame["dag_id"] for frame in await told(events, 1)] == ["chat"]


async def test_each_stream_of_a_connection_is_let_in_by_itself(guarded: RunningServer, ada: Rights) -> None:
    async with multiplex(guarded, ada.headers) as connection:
        await say(connection, op="subscribe", id="no", dag_id="secret", run_id="r1")
        error = await hear(connection, "error")
        assert (error["id"], error["status"], error["detail"]) == ("no", 403, "Forbidden")
        await say(connection, op="subscribe", id="yes", dag_id="chat", run_id="r1")
        assert (await hear(connection, "snapshot"))["id"] == "yes"


async def test_streams_of_a_connection_end_one_by_one(guarded: RunningServer, ada: Rights) -> None:
    async with multiplex(guarded, ada.headers) as connection:
        await say(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await hear(connection, "snapshot")
        await say(connection, op="subscribe", id="all")
        await hear(connection, "ack")
        ada.of_dag["chat"] = refused(403, "Forbidden")
        close = await hear(connection, "close")
        assert (close["id"], close["code"]) == ("run", 4503)
        await say(connection, op="ping", id="p")
        assert (await hear(connection, "ack"))["id"] == "p"
        ada.revoke()
        close = await hear(connection, "close")
        assert (close["id"], close["code"]) == ("all", 4501)


async def test_a_connection_goes_on_with_another_token(
    guarded: RunningServer, airflow: AirflowSql, ada: Rights, door: Door
) -> None:
    bob = Rights(jwt(sub="bob"), of_dag={"chat": refused(403, "Forbidden")})
    door.callers.append(bob)
    async with multiplex(guarded, ada.headers) as connection:
        await say(connection, op="subscribe", id="run", dag_id="chat", run_id="r1")
        await hear(connection, "snapshot")
        await say(connection, op="subscribe", id="all")
        await hear(connection, "ack")
        await say(connection, op="auth", id="me", token=bob.token)
        close = await hear(connection, "close")
        assert (close["id"], close["code"]) == ("run", 4503)
        await airflow.set_run(MINE, "running")
        await airflow.set_run(YOURS, "running")
        frame = await hear(connection, "run")
        assert (frame["id"], frame["dag_id"]) == ("all", "secret")
        await say(connection, op="auth", id="nobody", token="nobody")
        error = await hear(connection, "error")
        assert (error["id"], error["status"]) == ("nobody", 401)


async def test_what_is_nested_too_deeply_is_refused_like_all_that_is_not_understood(
    guarded: RunningServer, ada: Rights
) -> None:
    async with multiplex(guarded, ada.headers) as connection:
        await connection.send('{"a":' + "[" * 30_000)
        assert (await hear(connection, "error"))["status"] == 422
        await say(connection, op="ping", id="p")
        assert (await hear(connection, "ack"))["id"] == "p"


async def test_a_connection_without_credentials_introduces_itself(guarded: RunningServer, ada: Rights) -> None:
    async with multiplex(guarded, {}) as connection:
        await say(connection, op="auth", token=ada.token)
        assert (await hear(connection, "ack"))["op"] == "auth"
        await say(connection, op="subscribe", id="a", dag_id="chat", run_id="r1")
        assert (await hear(connection, "snapshot"))["id"] == "a"
