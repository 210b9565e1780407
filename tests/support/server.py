"""Servers of tests: in the test's own process on a real socket, or as a child process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from stream_server.domain.run_state import RunKey
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition
from stream_server.server.app import create_app
from stream_server.server.main import DrainingServer, build_uvicorn_config
from stream_server.settings import Settings
from support.waiting import eventually_async


@dataclass
class RunningServer:
    """A server that listens on a port."""

    url: str
    hub: Hub

    # Tests read and change private state of the hub only here.

    def subscriptions(self) -> list[Subscription]:
        """Return the open subscriptions."""
        return list(self.hub._subscriptions)

    def watcher_count(self, key: RunKey) -> int:
        """Return how many subscriptions a run has, including those that wait for its load."""
        watched = self.hub._runs.get(key)
        return 0 if watched is None else watched.watcher_count

    def set_hub_position(self, position: JournalPosition) -> None:
        """Set the hub back to an earlier position, as if its tail lagged."""
        self.hub._cursor = position

    def advance_hub(self, position: JournalPosition) -> None:
        """Move the hub to a position, as an empty batch does."""
        self.hub._move_cursor(position)


class ServerOfTest(DrainingServer):
    """A server that leaves signals to pytest: uvicorn raises them again at its end, while pytest ends itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_server(
    settings: Settings, *, direct_writes: bool = True, http: Any = None
) -> AsyncIterator[RunningServer]:
    """Run a server on a free port; at the end, drain and stop it.

    Args:
        settings: Settings of the server.
        direct_writes: Whether streams write directly to their connections, or through ASGI.
        http: uvicorn's HTTP implementation, where it matters.
    """
    app = create_app(settings)
    config = build_uvicorn_config(app, settings)
    if not direct_writes:
        config.http, config.ws = "httptools", "websockets-sansio"
    config.http = http or config.http
    server = ServerOfTest(config, settings)
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
    """Run `stream-server serve`; kill it at the end if it still runs."""
    return module_process("stream_server", "serve", *arguments, **environment)


@asynccontextmanager
async def module_process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module with its arguments; kill it at the end if it still runs."""
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


async def terminate_connections(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """Terminate the connections of all servers to a database; return their number."""
    killed = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'stream_server' AND datname = current_database()"
    )
    return len(killed)
