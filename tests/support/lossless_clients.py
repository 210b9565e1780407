"""A real server, and clients of both transports that keep their connections open through all faults."""

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
from support.lossless_ledger import ReaderLog, Row
from support.streams import DEADLINE, Frame, sse, websocket

LOST = ("journal_changed", "transitions_lost")
"""Reasons of a `reset` that do not come from the run itself."""

# Nothing listens there: streams make no request to Airflow's API.
NO_AIRFLOW = "http://127.0.0.1:9"

PATIENCE = 60.0
"""Seconds without a byte after which a client gives up; heartbeats come more often."""


class Clients:
    """A server in a process of its own, and clients that watch runs.

    Args:
        url: Database URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self._readers: list[asyncio.Task[None]] = []
        self._server: StreamServerProcess | None = None
        self.lines: list[ReaderLog] = []

    async def start(self, runs: list[RunKey]) -> None:
        """Start the server and a client for each run, and wait for all first snapshots.

        A run that is named a second time is watched over WebSocket.
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
            line = ReaderLog(f"client {number}", key.run_id)
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
        """Raise the error that ended a client or the server, if any: no connection may be lost."""
        assert self._server is not None
        assert self._server.child.is_running, "the server ended"
        for reader in self._readers:
            if reader.done():
                reader.result()
                raise AssertionError(f"{reader.get_name()} was disconnected")

    @property
    def megabytes(self) -> float:
        """Return the memory of the server."""
        assert self._server is not None
        return float(psutil.Process(self._server.child.pid).memory_info().rss) / 2**20

    async def _sse(self, url: str, key: RunKey) -> AsyncIterator[tuple[Frame, str | None]]:
        """Open a stream; return its frames with their cursors."""
        events = await self._stack.enter_async_context(sse(url, key, "?until=run", timeout=PATIENCE))

        async def frames() -> AsyncIterator[tuple[Frame, str | None]]:
            async for frame in events:
                yield frame, events.ids[-1]

        return frames()

    async def _websocket(self, url: str, key: RunKey) -> AsyncIterator[tuple[Frame, str | None]]:
        connection = await self._stack.enter_async_context(websocket(url, key, "?until=run"))

        async def frames() -> AsyncIterator[tuple[Frame, str | None]]:
            async for text in connection:
                frame = json.loads(text)
                yield frame, frame.get("cursor")

        return frames()

    async def _read(self, frames: AsyncIterator[tuple[Frame, str | None]], line: ReaderLog) -> None:
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
                # The last frame of a batch: a snapshot in it has the state at this cursor.
                cursor = ResumeToken.parse(at).position
                if restart:
                    line.record_resync(cursor, restart)
                line.cursor, restart = cursor, ""
