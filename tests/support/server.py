"""A server in the test's own process, on a real socket."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from stream_server.hub.hub import Hub
from stream_server.server.app import create_app
from stream_server.server.main import DrainingServer, build_uvicorn_config
from stream_server.settings import Settings
from support.waiting import eventually_async


@dataclass
class RunningServer:
    """A server that listens."""

    url: str
    hub: Hub


@asynccontextmanager
async def running_server(
    settings: Settings, *, straight: bool = True, http: Any = None
) -> AsyncIterator[RunningServer]:
    """Serve on a free port until the end of the context, then drain and stop.

    Args:
        settings: Of the server.
        straight: Whether streams write to their connections, as they do in ours, or use ASGI alone.
        http: uvicorn's implementation of HTTP, where it matters.
    """
    app = create_app(settings)
    config = build_uvicorn_config(app, settings)
    if not straight:
        config.http, config.ws = "httptools", "websockets-sansio"
    config.http = http or config.http
    server = DrainingServer(config, settings)
    task = asyncio.create_task(server.serve())
    try:
        await eventually_async(lambda: server.started or task.done(), what="the server listens")
        if task.done():
            task.result()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningServer(f"http://127.0.0.1:{port}", app.state.hub)
    finally:
        server.should_exit = True
        await task


def server_process(*arguments: str, **environment: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run `stream-server serve`, and kill it at the end if it still runs."""
    return module_process("stream_server", "serve", *arguments, **environment)


@asynccontextmanager
async def module_process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module with its arguments, and kill it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def cut_off(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """Take all servers' connections to a database away, and return how many there were."""
    killed = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'stream_server' AND datname = current_database()"
    )
    return len(killed)
