"""API keys that do not expire, each for an account of Airflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from stream_server.errors import SettingsError
from stream_server.server.main import check_settings
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import complete_run
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions, refusal
from support.waiting import eventually_async

KEY = "a-key-that-does-not-expire"
LOGIN = "/auth/token"
TOKEN_OF_ADA = "head.payload.signature"
"""What the stub answers to the login of `ada`."""


def entry(key: str = KEY, **account: str) -> dict[str, str]:
    return {"sha256": hashlib.sha256(key.encode()).hexdigest(), **account}


def write_keys(path: Path, *entries: dict[str, str]) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"keys": entries}))
    beside.replace(path)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """A file with the key of the account `ada`."""
    (tmp_path / "password").write_text("right\n")
    path = tmp_path / "keys.json"
    write_keys(path, entry(username="ada", file=str(tmp_path / "password")))
    return path


@pytest.fixture
async def server(
    settings: Callable[..., Settings], stub: AirflowStub, airflow: AirflowSql, keys_file: Path
) -> AsyncIterator[RunningServer]:
    permissions = StubPermissions(CallerPermissions(TOKEN_OF_ADA))

    async def respond(received: ReceivedRequest) -> Response | None:
        return None if received.target == LOGIN else await permissions(received)

    stub.instead = respond
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")
    async with running_server(settings(airflow_url=stub.url, api_keys_file=str(keys_file))) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client:
        yield client


def logins(stub: AirflowStub) -> list[ReceivedRequest]:
    return [received for received in stub.received if received.target == LOGIN]


async def test_a_key_has_the_rights_of_its_account(client: httpx.AsyncClient, stub: AirflowStub) -> None:
    stub.then = complete_run
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "chat"
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "because"
    chat = {"id": "c1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Why?"}]}]}
    assert (await client.post("/api/v2/dags/chat/chat", json=chat)).status_code == 200
    assert len(logins(stub)) == 1, "the token is used again"
    triggers = [received for received in stub.triggers if received.target != LOGIN]
    assert {received.headers["authorization"] for received in triggers} == {f"Bearer {TOKEN_OF_ADA}"}
    assert KEY not in str(stub.received)


async def test_keys_work_for_chat_clients_only(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v2/stream/runs")).status_code == 401


async def test_a_key_that_is_removed_is_refused_at_once(client: httpx.AsyncClient, keys_file: Path) -> None:
    assert (await client.get("/v1/models")).status_code == 200
    write_keys(keys_file, entry("another-key", command="echo token"))
    assert (await client.get("/v1/models")).status_code == 401
    write_keys(keys_file, entry("another-key"))
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer another-key"})).status_code == 401


async def test_a_command_prints_a_token(client: httpx.AsyncClient, keys_file: Path, stub: AirflowStub) -> None:
    write_keys(keys_file, entry(command=f"echo {TOKEN_OF_ADA}"))
    assert (await client.get("/v1/models")).status_code == 200
    assert logins(stub) == []


@pytest.mark.parametrize(
    ("account", "status"),
    [({"file": "/nonexistent"}, 502), ({"command": "false"}, 502), ({"username": "ada", "command": "echo wrong"}, 401)],
)
async def test_an_account_that_cannot_be_used_is_an_error(
    client: httpx.AsyncClient, keys_file: Path, account: dict[str, str], status: int
) -> None:
    write_keys(keys_file, entry(**account))
    answer = await client.get("/v1/models")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert KEY not in answer.text


async def test_a_token_that_airflow_refuses_is_not_used_again(client: httpx.AsyncClient, stub: AirflowStub) -> None:
    assert (await client.get("/v1/models")).status_code == 200
    respond = stub.instead

    async def refuse(received: ReceivedRequest) -> Response:
        return refusal(401, "Token revoked")

    stub.instead = refuse
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
    stub.instead = respond
    assert (await client.get("/v1/models")).status_code == 200
    assert len(logins(stub)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"keys": [{"sha256": "short", "file": "x"}]}',
        json.dumps({"keys": [entry()]}),
        json.dumps({"keys": [entry(file="x", command="y")]}),
        json.dumps({"keys": [entry(password="secret")]}),
    ],
)
def test_a_file_that_is_not_valid_stops_the_start(tmp_path: Path, settings: Callable[..., Settings], text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="API keys") as raised:
        check_settings(settings(api_keys_file=str(path)))
    assert "secret" not in str(raised.value)
