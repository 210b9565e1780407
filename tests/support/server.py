"""A server in the test's own process, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from stream_server.app import create_app
from stream_server.hub import Hub
from stream_server.server import Server, uvicorn_config
from stream_server.settings import Settings
from support.waiting import eventually_async


@dataclass
class RunningServer:
    """A server that listens."""

    url: str
    hub: Hub


@asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[RunningServer]:
    """Serve on a free port until the end of the context, then drain and stop."""
    app = create_app(settings)
    server = Server(uvicorn_config(app, settings), settings.grace_period)
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


async def cut_off(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """Take all servers' connections to a database away, and return how many there were."""
    killed = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'stream_server' AND datname = current_database()"
    )
    return len(killed)
