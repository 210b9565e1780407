"""A real server, and SSE clients that keep their connections open through everything."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from stream_server.cursor import Cursor
from stream_server.demo.server import Server
from stream_server.run_state import RunKey
from stream_server.settings import PREFIX
from support.lossless_ledger import Line, Row
from support.streams import Events, sse

LOST = ("journal_changed", "transitions_lost")
"""Reasons of a `reset` that do not come from the run itself."""

# Nothing answers there: no stream asks Airflow's API for anything.
NO_AIRFLOW = "http://127.0.0.1:9"

PATIENCE = 60.0
"""Seconds without a byte after which a client gives up; heartbeats come more often."""


class Clients:
    """A server in a process of its own, and clients that watch its runs.

    Args:
        url: Database URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self._readers: list[asyncio.Task[None]] = []
        self._server: Server | None = None
        self.lines: list[Line] = []

    async def start(self, runs: list[RunKey]) -> None:
        """Start the server, and have a client of each of some runs see its first snapshot."""
        logs = Path(self._stack.enter_context(TemporaryDirectory()))
        server = self._server = Server(
            "stream server",
            logs,
            database_url=self._url,
            airflow_url=NO_AIRFLOW,
            environment={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        )
        self._stack.callback(server.stop)
        await asyncio.to_thread(server.start)
        for number, key in enumerate(runs):
            events = await self._stack.enter_async_context(sse(server.url, key, "?until=run", timeout=PATIENCE))
            line = Line(f"client {number}", key.run_id)
            first = await events.next()
            assert first["type"] == "snapshot"
            self.lines.append(line)
            self._readers.append(asyncio.create_task(self._read(events, line), name=line.name))

    async def stop(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._stack.aclose()

    def check(self) -> None:
        """Raise what has ended a client or the server, if anything has: none may lose its connection."""
        assert self._server is not None
        assert self._server.child.running, "the server ended"
        for reader in self._readers:
            if reader.done():
                reader.result()
                raise AssertionError(f"{reader.get_name()} was disconnected")

    @property
    def megabytes(self) -> float:
        """Memory of the server."""
        assert self._server is not None
        return float(psutil.Process(self._server.child.pid).memory_info().rss) / 2**20

    async def _read(self, events: Events, line: Line) -> None:
        restart = ""
        async for frame in events._events:
            assert frame["type"] not in {"close", "end"}, f"{line.name} was sent {frame}"
            if frame["type"] == "reset" and frame["reason"] in LOST:
                restart = frame["reason"]
            if frame["type"] == "task":
                row = Row(
                    frame["seq"],
                    frame["run_id"],
                    frame["map_index"],
                    frame["try_number"],
                    frame["state"],
                    frame["previous_state"],
                )
                line.rows.append(row)
                line.reads += 1
            if (at := events.ids[-1]) is not None:
                # The last frame of a batch: what a snapshot in it tells is what this cursor saw.
                cursor = Cursor.parse(at)
                if restart:
                    line.begin_anew(cursor, restart)
                line.cursor, restart = cursor, ""
