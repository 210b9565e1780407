"""WebSockets that authenticate by message, at the start or later."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from support.server import RunningServer
from support.streams import frames_of, stream_path, types, websocket
from support.stub_callers import CallerPermissions, StubPermissions


async def test_a_new_token_needs_the_same_permissions(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions
) -> None:
    async with websocket(auth_server.url, key, headers=ada.headers) as connection:
        frame = json.loads(await connection.recv())
        await connection.send(json.dumps({"op": "auth", "id": "n", "token": "unknown"}))
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


async def test_a_websocket_without_credentials_authenticates_by_message(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions
) -> None:
    address = auth_server.url.replace("http", "ws", 1) + stream_path(key)
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
    ("message", "status", "code"),
    [
        ('{"op":"auth","token":"unknown"}', 401, 4501),
        ('{"op":"subscribe"}', 401, 4501),
        ("nonsense", 401, 4501),
        ('{"a":' + "[" * 30_000, 401, 4501),
        ('{"op":"auth"}', 401, 4501),
    ],
)
@pytest.mark.parametrize("path", ["run", "many"])
async def test_a_websocket_with_invalid_auth_messages_gets_no_frames(
    auth_server: RunningServer, key: RunKey, path: str, message: str, status: int, code: int
) -> None:
    address = auth_server.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        await connection.send(message)
        frames = await frames_of(connection)
    assert types(frames) == ["error", "close"]
    assert (frames[0]["status"], frames[1]["code"], connection.close_code) == (status, code, code)


@pytest.mark.parametrize("path", ["run", "many"])
async def test_no_auth_message_is_needed_where_airflow_allows_anonymous_access(
    auth_server: RunningServer, key: RunKey, permissions: StubPermissions, path: str
) -> None:
    permissions.callers.append(CallerPermissions(token=""))
    address = auth_server.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        if path == "many":
            subscribe = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id}
            await connection.send(json.dumps(subscribe))
        received: list[str] = []
        while "snapshot" not in received:
            received.append(json.loads(await asyncio.wait_for(connection.recv(), 10))["type"])
    assert set(received) <= {"ack", "ping", "snapshot"}


@pytest.mark.parametrize("path", ["run", "many"])
async def test_a_websocket_that_sends_no_auth_message_is_closed(
    auth_server: RunningServer, key: RunKey, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_server.http.websocket_auth.AUTH_TIMEOUT_SECONDS", 0.05)
    address = auth_server.url.replace("http", "ws", 1) + (stream_path(key) if path == "run" else "/api/v2/stream")
    async with connect(address, proxy=None) as connection:
        frames = await frames_of(connection)
    assert types(frames) == ["error", "close"]
    assert connection.close_code == 4501


async def test_a_refused_token_fails_the_handshake(auth_server: RunningServer, key: RunKey) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with websocket(auth_server.url, key, headers={"Authorization": "Bearer unknown"}):
            pass
    assert refusal.value.response.status_code == 401
    assert json.loads(refusal.value.response.body or b"")["detail"] == "Not authenticated"


async def test_an_unknown_run_is_reported_after_authentication(
    auth_server: RunningServer, ada: CallerPermissions
) -> None:
    async with websocket(auth_server.url, RunKey("chat", "nowhere")) as connection:
        await connection.send(json.dumps({"op": "auth", "token": ada.token}))
        frames = await frames_of(connection)
    assert types(frames) == ["ack", "error", "close"]
    assert (frames[1]["status"], frames[2]["code"]) == (404, 4500)


async def test_servers_without_authorization_accept_any_auth_message(server: RunningServer, run: RunKey) -> None:
    async with websocket(server.url, run) as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"
        await connection.send('{"op":"auth","token":"any"}')
        assert json.loads(await connection.recv())["type"] == "ack"
