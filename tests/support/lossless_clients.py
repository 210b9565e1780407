"""A real server, and clients of either transport that keep their connections open through everything."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from stream_server.cli.demo.server import StreamServerProcess
from stream_server.domain.run_state import RunKey
from stream_server.protocol.cursor import ResumeToken
from stream_server.settings import ENV_PREFIX
from support.lossless_ledger import Line, Row
from support.streams import DEADLINE, Frame, sse, websocket

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
        self._server: StreamServerProcess | None = None
        self.lines: list[Line] = []

    async def start(self, runs: list[RunKey]) -> None:
        """Start the server, and have a client of each of some runs see its first snapshot.

        Those that are named a second time are watched over WebSocket.
        """
        logs = Path(self._stack.enter_context(TemporaryDirectory()))
        server = self._server = StreamServerProcess(
            "stream server",
            logs,
            database_url=self._url,
            airflow_url=NO_AIRFLOW,
            options=("--auth", "none"),
            environment={name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
        )
        self._stack.callback(server.stop)
        await asyncio.to_thread(server.start)
        for number, key in enumerate(runs):
            frames = await (self._websocket if key in runs[:number] else self._sse)(server.url, key)
            line = Line(f"client {number}", key.run_id)
            first, _ = await asyncio.wait_for(anext(frames), DEADLINE)
            assert first["type"] == "snapshot"
            self.lines.append(line)
            self._readers.append(asyncio.create_task(self._read(frames, line), name=line.name))

    async def stop(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._stack.aclose()

    def check(self) -> None:
        """Raise what has ended a client or the server, if anything has: none may lose its connection."""
        assert self._server is not None
        assert self._server.child.is_running, "the server ended"
        for reader in self._readers:
            if reader.done():
                reader.result()
                raise AssertionError(f"{reader.get_name()} was disconnected")

    @property
    def megabytes(self) -> float:
        """Memory of the server."""
        assert self._server is not None
        return float(psutil.Process(self._server.child.pid).memory_info().rss) / 2**20

    async def _sse(self, url: str, key: RunKey) -> AsyncIterator[tuple[Frame, str | None]]:
        """Open a stream, and return its frames with the cursors that they carry."""
        events = await self._stack.enter_async_context(sse(url, key, "?until=run", timeout=PATIENCE))

        async def frames() -> AsyncIterator[tuple[Frame, str | None]]:
            async for frame in events._events:
                yield frame, events.ids[-1]

        return frames()

    async def _websocket(self, url: str, key: RunKey) -> AsyncIterator[tuple[Frame, str | None]]:
        connection = await self._stack.enter_async_context(websocket(url, key, "?until=run"))

        async def frames() -> AsyncIterator[tuple[Frame, str | None]]:
            async for text in connection:
                frame = json.loads(text)
                yield frame, frame.get("cursor")

        return frames()

    async def _read(self, frames: AsyncIterator[tuple[Frame, str | None]], line: Line) -> None:
        restart = ""
        async for frame, at in frames:
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
            if at is not None:
                # The last frame of a batch: what a snapshot in it tells is what this cursor saw.
                cursor = ResumeToken.parse(at).position
                if restart:
                    line.begin_anew(cursor, restart)
                line.cursor, restart = cursor, ""
