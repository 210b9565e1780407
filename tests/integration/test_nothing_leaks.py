"""Logs, metrics, errors and process lists never contain a credential or a return value, whatever fails."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest
from starlette.responses import JSONResponse, Response
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints.tickets import TICKETS_PATH
from stream_server.http.routes import SESSION
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, TruncatedResponse
from support.airflow_stub_fixtures import WAIT
from support.server import RunningServer, server_process, terminate_connections
from support.streams import DEADLINE, stream_path
from support.waiting import eventually_answered

SECRET = "5ecret"
"""A part of every credential and every value here."""

KEY = RunKey("chat", "r1")
RIGHT: tuple[dict[str, str], ...] = (
    {"Authorization": f"Bearer right.{SECRET}"},
    {"Cookie": f"_token=right.{SECRET}; _refresh_token={SECRET}-too"},
)
WRONG: tuple[dict[str, str], ...] = (
    {"Authorization": f"Bearer wrong.{SECRET}"},
    {"Authorization": f"Basic {SECRET}"},
    {"Authorization": f"Bearer \u00e9{SECRET}"},
    {"Cookie": f"_token=wrong.{SECRET}"},
)


async def _accept_right_token(request: ReceivedRequest) -> Response | None:
    shown = request.headers.get("authorization", "") + request.headers.get("cookie", "")
    return None if f"right.{SECRET}" in shown else JSONResponse({"detail": "Invalid JWT token"}, 403)


async def _broken(request: ReceivedRequest) -> Response | None:
    return TruncatedResponse()


async def test_no_secret_is_revealed(
    journal: str, airflow: AirflowSql, stub: AirflowStub, unused_tcp_port: int
) -> None:
    await airflow.trigger(KEY, stub.version, list(CHAIN))
    stub.instead = _accept_right_token
    url = f"http://127.0.0.1:{unused_tcp_port}"
    secret_url = journal.replace("//airflow@", f"//airflow:{SECRET}@")
    options = ["--port", str(unused_tcp_port), "--airflow-url", stub.url, "--log-level", "debug"]
    async with server_process(*options, "--database-url", secret_url) as process:
        assert process.stderr is not None
        logged = asyncio.create_task(process.stderr.read())
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            await eventually_answered(lambda: _ready(client), what="the server is ready")
            texts = [await _send_all_requests(client, url)]
            await airflow.run_task(KEY, "answer", {"text": SECRET})
            assert await terminate_connections(airflow.connection)
            await eventually_answered(lambda: _ready(client), what="the server is ready again")
            stub.instead = _broken
            texts.append(await _send_all_requests(client, url))
            texts.append((await client.get("/metrics")).text)
        shown = psutil.Process(process.pid).cmdline()
        process.terminate()
        log = (await asyncio.wait_for(logged, DEADLINE)).decode()
    assert "HTTP Request: GET" in log, "requests to Airflow are logged"
    assert [line for line in log.splitlines() if SECRET in line or "ticket=" in line] == []
    assert [argument for argument in shown if SECRET in argument] == []
    assert [text for text in texts if SECRET in text] == []


async def _ready(client: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await client.get("/ready")).status_code == 200
    return False


async def _send_all_requests(client: httpx.AsyncClient, url: str) -> str:
    """Send all kinds of requests; return the texts of errors."""
    path, errors = stream_path(KEY), []
    for headers in (*RIGHT, *WRONG):
        requests: list[tuple[str, str, Any]] = [
            ("GET", f"{path}?until=run", None),
            ("GET", "/api/v2/stream", None),
            ("GET", f"{path.removesuffix('stream')}result?timeout=0", None),
            ("GET", f"{path}?token={SECRET}", None),
            ("GET", f"{path}?ticket={SECRET}", None),
            ("GET", f"{path}?nonsense={SECRET[:0]}", None),
            ("POST", f"{WAIT}&timeout=0", {"conf": {"question": SECRET}}),
            ("POST", f"{path.removesuffix('stream')}cancel", None),
            ("GET", f"{path.removesuffix('stream')}graph", None),
            ("POST", SESSION, {"username": "ada", "password": SECRET}),
            ("POST", SESSION, {"username": SECRET}),
            ("POST", SESSION, {"token": f"right.{SECRET}"}),
            ("POST", SESSION, {"token": f"wrong.{SECRET}"}),
            ("DELETE", SESSION, None),
        ]
        for method, target, body in requests:
            async with client.stream(method, target, json=body, headers=_octets(headers)) as answer:
                if not answer.is_success:
                    errors.append((await answer.aread()).decode())
            # After the logout the client is anonymous again.
            client.cookies.clear()
        errors.append(await _use_ticket(client, path, headers))
        await _authenticate(url, headers)
    return "".join(errors)


def _octets(headers: dict[str, str]) -> httpx.Headers:
    return httpx.Headers(headers, encoding="latin-1")


async def _use_ticket(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> str:
    answer = await client.post(TICKETS_PATH, json={"paths": [path]}, headers=_octets(headers))
    if answer.status_code != 201:
        return answer.text
    target = f"{path}?until=run&ticket={answer.json()['ticket']}"
    async with client.stream("GET", target) as stream:
        assert stream.status_code in {200, 503}
    return (await client.get(target)).text


async def _authenticate(url: str, headers: dict[str, str]) -> None:
    """Authenticate on a WebSocket, in the handshake and by message."""
    address = url.replace("http", "ws", 1) + "/api/v2/stream"
    headers = {name: value for name, value in headers.items() if value.isascii()}
    with suppress(InvalidStatus, ConnectionClosed):
        async with connect(address, additional_headers=headers, proxy=None) as connection:
            await connection.send(json.dumps({"op": "auth", "token": f"message.{SECRET}"}))
            await connection.send(json.dumps({"op": "subscribe", "id": "a", "dag_id": "chat", "token": SECRET}))
            await connection.recv()


@pytest.mark.parametrize("ticket", ["x" * 43, "a&ticket=b"])
async def test_no_access_log_has_a_ticket(
    stub: AirflowStub, trigger_server: RunningServer, ticket: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient(base_url=trigger_server.url) as client:
        await client.get(f"{stream_path(KEY)}?until=run&ticket={ticket}")
    assert "until=run" in caplog.text
    assert "ticket" not in caplog.text
