"""WebSockets that say who they are in a message, at first or later."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from support.server import RunningServer
from support.streams import frames_of, stream_path, types, websocket
from support.stub_callers import Door, Rights


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
async def test_where_airflow_lets_in_who_says_nothing_nobody_need_introduce_himself(
    guarded: RunningServer, key: RunKey, door: Door, path: str
) -> None:
    door.callers.append(Rights(token=""))
    address = guarded.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        if path == "many":
            subscribe = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id}
            await connection.send(json.dumps(subscribe))
        heard: list[str] = []
        while "snapshot" not in heard:
            heard.append(json.loads(await asyncio.wait_for(connection.recv(), 10))["type"])
    assert set(heard) <= {"ack", "ping", "snapshot"}


@pytest.mark.parametrize("path", ["run", "many"])
async def test_a_websocket_that_says_nothing_is_closed(
    guarded: RunningServer, key: RunKey, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_server.http.websocket_auth.PATIENCE_SECONDS", 0.05)
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
