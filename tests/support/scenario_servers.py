"""Servers in every arrangement, for tests that do the same in all ways."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.readiness import get_ready
from support.server import server_process
from support.stream_receivers import TRANSPORTS, Target, Way
from support.streams import DEADLINE
from support.stub_callers import CallerPermissions, StubPermissions
from support.waiting import eventually_answered

ARRANGEMENTS = {"one process": (), "two workers": ("--workers", "2")}

START_SECONDS = 60.0


@asynccontextmanager
async def all_ways(database_url: str) -> AsyncIterator[list[Way]]:
    """Serve a database in each arrangement, open and with permissions; yield each of these with each transport.

    At the end the servers are stopped. They must not have logged an error.
    """
    ada = CallerPermissions()
    async with AsyncExitStack() as stack:
        airflow = await stack.enter_async_context(AirflowSql.open(database_url))
        stub = await stack.enter_async_context(AirflowStub.serve(database_url, airflow))
        stub.instead = StubPermissions(ada)
        # The client gives up an idle connection before the server closes it (5 s), so that it is not closed when used.
        limits = httpx.Limits(keepalive_expiry=2)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=3 * DEADLINE, limits=limits))
        targets = []
        for (name, arguments), auth in itertools.product(ARRANGEMENTS.items(), ("none", "airflow")):
            port = await stack.enter_async_context(_serving(database_url, stub.url, "--auth", auth, *arguments))
            headers = ada.headers if auth == "airflow" else {}
            targets.append(Target(f"{name}, auth {auth}", f"http://127.0.0.1:{port}", headers, client))
        for target in targets:
            await _wait_until_ready(target)
        yield [Way(target, transport) for transport in TRANSPORTS for target in targets]


async def _wait_until_ready(target: Target) -> None:
    async def is_ready() -> bool:
        try:
            return (await get_ready(target.url))[0] == 200
        except httpx.TransportError:
            return False

    await eventually_answered(is_ready, START_SECONDS, f"{target.name} is ready")


@asynccontextmanager
async def _serving(database_url: str, airflow_url: str, *arguments: str) -> AsyncIterator[int]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = int(unused.getsockname()[1])
    command = ("--port", str(port), "--airflow-url", airflow_url, *arguments)
    async with server_process(*command, STREAM_SERVER_DATABASE_URL=database_url) as process:
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        yield port
        process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE)
        log = (await reading).decode()
        assert "ERROR" not in log, log
        assert "Traceback" not in log, log
