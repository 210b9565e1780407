"""Airflow decides who may see what: before a stream begins, while it lives, and where Airflow itself is not there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.callers import Door, Rights, jwt, refused
from support.server import RunningServer, running_server
from support.streams import Events, frames_of, sse, stream_path, types, websocket
from support.waiting import eventually_async

KEY = RunKey("chat", "r1")
INTERVAL = 0.2


@pytest.fixture
def ada() -> Rights:
    return Rights()


@pytest.fixture
def door(stub: AirflowStub, ada: Rights) -> Door:
    door = Door(ada)
    stub.instead = door
    return door


@pytest.fixture
async def guarded(
    settings: Callable[..., Settings],
    stub: AirflowStub,
    door: Door,
) -> AsyncIterator[RunningServer]:
    """A server that asks that Airflow, and asks often."""
    configured = settings(airflow_url=stub.url, auth_cache=INTERVAL, auth_grace="1s", ping_interval="100ms")
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.live, what="the tail has begun")
        yield server


@pytest.fixture
async def key(airflow: AirflowSql, stub: AirflowStub) -> RunKey:
    await airflow.trigger(KEY, stub.version, list(CHAIN))
    return KEY


def client_of(server: RunningServer, caller: Rights | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, headers=caller.headers if caller else {}, timeout=15)


PATHS = {
    "stream": "/stream",
    "result": "/result?timeout=0",
    "wait": "/wait?interval=1",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("status", "said"), [(401, "Not authenticated"), (401, "Token Expired"), (403, "Forbidden")])
async def test_a_refusal_of_airflows_is_passed_on_whether_or_not_the_run_is_there(
    guarded: RunningServer, key: RunKey, ada: Rights, path: str, status: int, said: str, *, there: bool
) -> None:
    ada.runs = ada.xcoms = refused(status, said)
    run = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id if there else 'nowhere'}"
    async with client_of(guarded, ada) as client:
        answer = await client.get(f"{run}{path}")
    assert (answer.status_code, answer.json()["detail"]) == (status, said)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    form = "application/json" if path.startswith("/wait") else "application/problem+json"
    assert answer.headers["content-type"] == form


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_who_may_read_runs_is_told_that_there_is_none(guarded: RunningServer, ada: Rights, path: str) -> None:
    async with client_of(guarded, ada) as client:
        answers = [await client.get(f"/api/v2/dags/chat/dagRuns/nowhere{path}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]


async def test_a_run_whose_name_is_another_path_is_nowhere(guarded: RunningServer, ada: Rights) -> None:
    async with client_of(guarded, ada) as client:
        answer = await client.get("/api/v2/dags/chat/dagRuns/%2E%2E/result")
    assert answer.status_code == 404


async def test_without_credentials_nothing_is_told(guarded: RunningServer, key: RunKey) -> None:
    async with client_of(guarded) as client:
        for path in (f"/api/v2/dags/chat/dagRuns/{key.run_id}/stream", "/api/v2/stream", "/api/v2/dags/chat/stream"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["detail"]) == (401, "Not authenticated")


async def test_all_cookies_are_as_good_as_a_token(guarded: RunningServer, key: RunKey, ada: Rights) -> None:
    headers = {"Cookie": f"theme=dark; _token={ada.token}; _access_token=more"}
    async with sse(guarded.url, key, headers=headers) as events:
        assert (await events.next())["type"] == "snapshot"


async def test_a_header_that_can_not_be_sent_on_is_told_without_it(guarded: RunningServer, key: RunKey) -> None:
    async with client_of(guarded) as client:
        answer = await client.get(stream_path(key), headers=[(b"Authorization", b"Bearer s\xe9cret")])
    assert answer.status_code == 401
    assert "cret" not in answer.text


async def test_who_may_not_read_xcoms_hears_that_there_is_a_result(
    guarded: RunningServer, airflow: AirflowSql, key: RunKey, ada: Rights
) -> None:
    ada.withhold()
    async with sse(guarded.url, key, headers=ada.headers) as events:
        await events.next()
        await airflow.answer(key)
        result = (await events.until("result"))[-1]
        assert (result["results"], result["withheld"]) == ({}, True)
        assert "references" not in result
        assert (await events.rest())[-1]["outcome"] == "result"
    async with client_of(guarded, ada) as client:
        answer = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result")
        assert (answer.status_code, answer.json()["results"], answer.json()["withheld"]) == (200, {}, True)
        bare = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?unwrap=true")
        assert (bare.status_code, bare.json()["title"]) == (403, "No result")
        assert "because" not in answer.text + bare.text


async def test_callers_of_one_run_are_told_what_each_may_see(
    guarded: RunningServer, airflow: AirflowSql, key: RunKey, ada: Rights, door: Door
) -> None:
    viewer = Rights(jwt(sub="vera"))
    viewer.withhold()
    door.callers.append(viewer)
    async with sse(guarded.url, key, headers=ada.headers) as hers, sse(guarded.url, key, headers=viewer.headers) as his:
        await hers.next()
        await his.next()
        await airflow.answer(key)
        assert (await hers.until("result"))[-1]["results"] == {"answer": {"text": "because"}}
        assert (await his.until("result"))[-1]["results"] == {}


async def test_a_trigger_withholds_too(
    guarded: RunningServer,
    stub: AirflowStub,
    ada: Rights,
) -> None:
    ada.withhold()

    async def answer(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.answer(key)

    stub.then = answer
    async with client_of(guarded, ada) as client:
        answer_ = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert (answer_.json()["outcome"], answer_.json()["withheld"]) == ("result", True)
    assert "because" not in answer_.text


async def test_who_may_not_read_what_he_triggers_triggers_nothing(
    guarded: RunningServer,
    stub: AirflowStub,
    ada: Rights,
) -> None:
    ada.of_dag["chat"] = refused(403, "Forbidden")
    async with client_of(guarded, ada) as client:
        answer = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert answer.status_code == 403
    assert stub.triggers == []


async def test_the_same_question_is_asked_once(
    settings: Callable[..., Settings],
    stub: AirflowStub,
    door: Door,
    ada: Rights,
    airflow: AirflowSql,
) -> None:
    for number in range(5):
        await airflow.trigger(RunKey("chat", f"r{number}"), stub.version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url)) as server, client_of(server, ada) as client:
        await eventually_async(lambda: server.hub.live)
        paths = [f"/api/v2/dags/chat/dagRuns/r{number % 5}/result?timeout=0" for number in range(40)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
    assert {answer.status_code for answer in answers} == {202}
    assert len([asked for asked in stub.asked if "xcomEntries" in asked.target]) == 1
    assert len(stub.asked) == 2


ENDS: dict[str, tuple[Callable[[Rights], None], int, bool]] = {
    "logout": (Rights.revoke, 4501, False),
    "expiry": (Rights.expire, 4501, False),
    "permission": (Rights.forbid, 4503, False),
    "XComs": (Rights.withhold, 4007, True),
}


@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize("transport", ["sse", "ndjson", "websocket"])
async def test_a_stream_ends_with_what_it_stands_on(
    guarded: RunningServer, key: RunKey, ada: Rights, transport: str, what: str
) -> None:
    end, code, reconnect = ENDS[what]
    if transport == "websocket":
        async with websocket(guarded.url, key, headers=ada.headers) as connection:
            assert json.loads(await connection.recv())["type"] == "snapshot"
            end(ada)
            frames = await frames_of(connection)
            assert connection.close_code == code
    else:
        accept = {"Accept": "application/x-ndjson"} if transport == "ndjson" else {}
        async with (
            client_of(guarded, ada) as client,
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
    await eventually_async(lambda: guarded.hub.statistics().subscriptions == 0)


@pytest.mark.parametrize(("what", "status"), [("logout", 403), ("expiry", 401), ("permission", 403)])
async def test_who_waits_for_an_answer_is_told_as_if_he_came_anew(
    guarded: RunningServer, key: RunKey, ada: Rights, what: str, status: int
) -> None:
    async with client_of(guarded, ada) as client:
        waiting = asyncio.create_task(client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?timeout=20s"))
        await eventually_async(lambda: guarded.hub.statistics().subscriptions == 1)
        ENDS[what][0](ada)
        answer = await waiting
    # Airflow says 403 to a token that was revoked; both say that it is good no more.
    assert answer.status_code == (401 if what == "logout" else status)


async def test_while_airflow_is_away_streams_go_on_for_a_while_and_none_begins(
    guarded: RunningServer, airflow: AirflowSql, key: RunKey, ada: Rights, door: Door
) -> None:
    async with sse(guarded.url, key, headers=ada.headers) as events:
        await events.next()
        door.down = JSONResponse({"detail": "down"}, 500)
        async with client_of(guarded, ada) as client:

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


async def test_an_airflow_that_comes_back_in_time_ends_nothing(
    guarded: RunningServer,
    airflow: AirflowSql,
    key: RunKey,
    ada: Rights,
    door: Door,
    stub: AirflowStub,
) -> None:
    async with sse(guarded.url, key, headers=ada.headers) as events:
        await events.next()
        door.down = JSONResponse({"detail": "down"}, 500)
        before = len(stub.asked)
        await eventually_async(lambda: len(stub.asked) > before + 2)
        door.down = None
        before = len(stub.asked)
        await eventually_async(lambda: len(stub.asked) > before + 4)
        await airflow.answer(key)
        assert (await events.rest())[-1]["type"] == "end"


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_a_token_that_expires_is_foretold(
    guarded: RunningServer, key: RunKey, ada: Rights, door: Door, transport: str
) -> None:
    ada.token = jwt(sub="ada", exp=time.time() + 61)
    if transport == "sse":
        async with sse(guarded.url, key, headers=ada.headers) as events:
            await events.next()
            last = (await events.rest())[-1]
            assert (last["type"], last["code"], last["reconnect"]) == ("close", 4006, True)
        async with sse(guarded.url, key, headers=ada.headers) as events:
            # Told once: he has come with the same again.
            assert types([await events.next() for _ in range(8)]).count("close") == 0
        return
    async with websocket(guarded.url, key, headers=ada.headers) as connection:
        frame: dict[str, Any] = {}
        while frame.get("type") != "auth_expiring":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        fresh = Rights(jwt(sub="ada", jti="2"))
        door.callers.append(fresh)
        await connection.send(json.dumps({"op": "auth", "id": "n", "token": fresh.token}))
        while frame["type"] != "ack":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        assert frame == {"type": "ack", "op": "auth", "id": "n"}
        ada.expire()
        assert types([json.loads(await connection.recv()) for _ in range(8)]) == ["ping"] * 8


async def test_another_token_must_be_as_good(guarded: RunningServer, key: RunKey, ada: Rights) -> None:
    async with websocket(guarded.url, key, headers=ada.headers) as connection:
        frame = json.loads(await connection.recv())
        await connection.send(json.dumps({"op": "auth", "id": "n", "token": "nobody"}))
        while frame["type"] != "error":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        assert (frame["id"], frame["status"], frame["detail"]) == ("n", 401, "Not authenticated")
        await connection.send('{"op":"auth","id":"m","token":"n\\u00e9"}')
        while frame.get("id") != "m":
            frame = json.loads(await asyncio.wait_for(connection.recv(), 10))
        assert (frame["type"], frame["status"]) == ("error", 422)
        await connection.send("nonsense")
        await connection.send('{"op":' + "[" * 30_000)
        assert json.loads(await connection.recv())["type"] == "ping"


async def test_a_websocket_without_credentials_introduces_itself(
    guarded: RunningServer, key: RunKey, ada: Rights
) -> None:
    address = guarded.url.replace("http", "ws", 1) + stream_path(key)
    async with connect(
        address,
        proxy=None,
        subprotocols=["bearer.secret", "airflow-stream"],  # type: ignore[list-item]
        additional_headers={"Cookie": "theme=dark"},
    ) as connection:
        assert connection.subprotocol == "airflow-stream"
        await connection.send(json.dumps({"op": "auth", "token": ada.token}))
        assert json.loads(await connection.recv()) == {"type": "ack", "op": "auth", "id": ""}
        assert json.loads(await connection.recv())["type"] == "snapshot"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ('{"op":"auth","token":"nobody"}', 401, 4501),
        ('{"op":"subscribe"}', 401, 4501),
        ("nonsense", 401, 4501),
        ('{"a":' + "[" * 30_000, 401, 4501),
        ('{"op":"auth"}', 401, 4501),
    ],
)
@pytest.mark.parametrize("path", ["run", "many"])
async def test_a_websocket_that_introduces_itself_badly_is_told_nothing(
    guarded: RunningServer, key: RunKey, path: str, said: str, status: int, code: int
) -> None:
    address = guarded.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        await connection.send(said)
        frames = await frames_of(connection)
    assert types(frames) == ["error", "close"]
    assert (frames[0]["status"], frames[1]["code"], connection.close_code) == (status, code, code)


@pytest.mark.parametrize("path", ["run", "many"])
async def test_a_websocket_that_says_nothing_is_closed(
    guarded: RunningServer, key: RunKey, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_server.transports.introduction.PATIENCE_SECONDS", 0.05)
    address = guarded.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        frames = await frames_of(connection)
    assert types(frames) == ["error", "close"]
    assert connection.close_code == 4501


async def test_a_token_that_airflow_refuses_gets_no_handshake(guarded: RunningServer, key: RunKey) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with websocket(guarded.url, key, headers={"Authorization": "Bearer nobody"}):
            pass
    assert refusal.value.response.status_code == 401
    assert json.loads(refusal.value.response.body or b"")["detail"] == "Not authenticated"


async def test_an_unknown_run_is_told_after_the_introduction(guarded: RunningServer, ada: Rights) -> None:
    async with websocket(guarded.url, RunKey("chat", "nowhere")) as connection:
        await connection.send(json.dumps({"op": "auth", "token": ada.token}))
        frames = await frames_of(connection)
    assert types(frames) == ["ack", "error", "close"]
    assert (frames[1]["status"], frames[2]["code"]) == (404, 4500)


async def test_streams_without_authorization_take_an_introduction_for_what_it_is_worth(
    server: RunningServer, run: RunKey
) -> None:
    async with websocket(server.url, run) as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"
        await connection.send('{"op":"auth","token":"any"}')
        assert json.loads(await connection.recv())["type"] == "ack"
