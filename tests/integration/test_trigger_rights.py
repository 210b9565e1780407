"""Credentials of a call that triggers a run, and calls from pages of other origins."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import COOKIES, RUNS, TOKEN, WAIT, run_path
from support.server import running_server
from support.streams import websocket
from support.waiting import eventually_async

START_SECONDS = 60.0
"""Time for the start of the command, on a busy machine."""


@pytest.mark.parametrize("path", [RUNS, WAIT, f"{RUNS}/r/cancel", f"{RUNS}/r/taskInstances/t/input"])
async def test_a_page_of_another_origin_triggers_nothing(
    caller: httpx.AsyncClient, stub: AirflowStub, path: str
) -> None:
    answer = await caller.post(path, json={}, headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["title"]) == (403, "Foreign origin")
    assert stub.received == []
    own = await caller.post(WAIT + "&timeout=0", json={}, headers={"Origin": str(caller.base_url).rstrip("/")})
    assert own.status_code == 202


async def test_a_page_of_an_allowed_origin_can_trigger_runs(
    settings: Callable[..., Settings], stub: AirflowStub
) -> None:
    page = {"Origin": "https://app.example"}
    preflight = {
        **page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }
    async with running_server(settings(airflow_url=stub.url, cors_origins="https://app.example")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url) as client:
            allowed = await client.options(WAIT, headers=preflight)
            answer = await client.post(WAIT + "&timeout=0", json={}, headers=page)
    assert allowed.status_code == 200, allowed.text
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert all(name in exposed for name in ("content-location", "location", "retry-after"))


async def test_credentials_are_forwarded_to_airflow_for_their_own_call_only(
    caller: httpx.AsyncClient, stub: AirflowStub
) -> None:
    async def set_a_cookie(_session: AirflowSql, key: RunKey) -> Response:
        return JSONResponse({"dag_run_id": key.run_id}, headers={"Set-Cookie": "_token=the-secret-of-airflow; Path=/"})

    stub.then = set_a_cookie
    assert (await caller.post(f"{WAIT}&timeout=0", json={})).status_code == 202
    stub.then = None
    assert (await caller.post(f"{run_path('manual__1')}/cancel")).status_code == 200
    async with httpx.AsyncClient(base_url=caller.base_url) as anonymous:
        await anonymous.post(f"{WAIT}&timeout=0", json={})
    trigger, other = stub.triggers
    for received in (trigger, *stub.patches):
        assert (received.headers["authorization"], received.headers["cookie"]) == (TOKEN, COOKIES)
    assert "authorization" not in other.headers
    assert "cookie" not in other.headers, "a cookie set for one caller is not sent for another"


async def test_logs_contain_no_credentials(journal: str, stub: AirflowStub, unused_tcp_port: int) -> None:
    async def set_a_cookie(_session: AirflowSql, key: RunKey) -> Response:
        return JSONResponse({"dag_run_id": key.run_id}, headers={"Set-Cookie": "_token=the-secret-of-airflow; Path=/"})

    stub.then = set_a_cookie
    async with serving(
        *("--database-url", journal, "--port", str(unused_tcp_port)),
        *("--airflow-url", stub.url, "--log-level", "debug"),
    ) as (url, read_log):
        credentials = {"Authorization": TOKEN, "Cookie": COOKIES}
        async with httpx.AsyncClient(base_url=url, headers=credentials, timeout=15) as caller:
            assert (await caller.post(f"{WAIT}&timeout=0", json={})).status_code == 202
            assert (await caller.post(RUNS, json={})).status_code == 200
        async with websocket(url, RunKey("chat", "manual__1"), headers=credentials) as connection:
            await connection.recv()
    logged = await read_log()
    assert f"POST {stub.url}" in logged, "requests to Airflow are logged at debug level"
    assert "secret" not in logged


@asynccontextmanager
async def serving(*options: str) -> AsyncIterator[tuple[str, Callable[[], Awaitable[str]]]]:
    """Run the command; yield its address and a function that returns its log after it has ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "serve", *options), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[bytes] = []

    async def read_log() -> str:
        assert process.stderr is not None
        return b"".join([*lines, await process.stderr.read()]).decode()

    try:
        while not lines or b"Following the journal" not in lines[-1]:
            lines.append(await asyncio.wait_for(process.stderr.readline(), START_SECONDS))
        yield f"http://127.0.0.1:{options[3]}", read_log
    finally:
        process.terminate()
        await process.wait()
