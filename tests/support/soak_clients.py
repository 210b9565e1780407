"""Clients that connect and disconnect during a soak, and check each frame against the expected next one.

Transitions of the runs that they watch are numbered consecutively.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN
from support.soak_connections import (
    CONNECTION_ERRORS,
    Disconnect,
    Frame,
    HttpStream,
    StreamOver,
    StreamRefused,
    WebSocketStream,
)
from support.streams import stream_path

KINDS = ("sse", "ndjson", "websocket", "multiplex", "firehose", "slow")
MULTIPLEXED = 4
"""Runs that are watched on one connection."""

FAST = 0
"""Index of the run that changes fastest, which slow clients watch."""

VISIT_SECONDS = 8.0
"""Mean duration of a connection of a client that is not permanent."""

SLOW_READ_SECONDS = (6.0, 14.0)
"""Shortest and longest time in which a slow client does not read."""

TRANSITIONS = 4 * len(CHAIN)
"""Number of task transitions of a run that is run to its end."""

BACKOFF_SECONDS = (0.2, 1.5)
DISCONNECTS: tuple[Disconnect, ...] = ("close", "close", "reset", "vanish")
FORGET_CURSOR_SHARE = 0.3
"""Share of clients that reconnect without their cursor."""


class AbandonedConnection(NamedTuple):
    """An abandoned connection. It stays open without a FIN, so that only the server can detect it."""

    abandoned_at: float
    """By the monotonic clock."""

    connection: HttpStream | WebSocketStream


@dataclass
class Tally:
    """Counters of all clients."""

    frames: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    """Frames that were sent again after `resumed`, which the protocol allows."""

    visits: Counter[str] = field(default_factory=Counter)
    disconnects: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    resets: Counter[str] = field(default_factory=Counter)
    closes: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    refused: int = 0
    completed: int = 0
    """Runs that clients watched to the end."""

    misses: list[str] = field(default_factory=list)
    abandoned: deque[AbandonedConnection] = field(default_factory=deque)

    def lost_updates(self) -> dict[str, int]:
        """Return the numbers of frames that the protocol does not allow to miss or to repeat."""
        return {"lost": self.lost, "doubled": self.doubled}


class RunProgress:
    """A client's state of one run."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._catching_up = False
        self.number: int | None = None

    def handle(self, frame: Frame) -> None:
        """Check and apply a frame."""
        kind = frame["type"]
        if kind == "snapshot":
            self.number = next(task["try_number"] for task in frame["tasks"] if task["task_id"] == "ask")
        elif kind == "task":
            self._handle_number(frame["try_number"])
        elif kind == "resumed":
            self._tally.resumed += 1
            self._catching_up = True
        elif kind == "reset":
            self._tally.resets[frame["reason"]] += 1
            self.number = None
        elif kind == "end":
            self._tally.misses.append(f"a run that continues has ended: {frame}")

    def start_connection(self) -> None:
        """Start a new connection."""
        self._catching_up = False

    def _handle_number(self, number: int) -> None:
        self._tally.frames += 1
        if self.number is None or number == self.number + 1:
            self._catching_up = False
        elif number > self.number:
            self._tally.lost += number - self.number - 1
        elif self._catching_up:
            self._tally.repeated += 1
            return
        else:
            self._tally.doubled += 1
            return
        self.number = number


class Client:
    """One client that connects repeatedly.

    Args:
        kind: One of `KINDS`.
        ports: Ports of the servers; each connection goes to one of them.
        runs: Runs that it can watch.
        tally: Counters.
        is_permanent: Whether it disconnects only at the end.
    """

    def __init__(
        self, kind: str, ports: Sequence[int], runs: Sequence[RunKey], tally: Tally, *, is_permanent: bool
    ) -> None:
        self.kind = kind
        self.is_permanent = is_permanent
        self._ports = ports
        self._tally = tally
        count = MULTIPLEXED if kind == "multiplex" else 1
        self.runs = [runs[FAST]] if kind == "slow" else random.sample(list(runs[FAST + 1 :]), count)
        self.progress: dict[str, RunProgress] = {}
        self._cursors: dict[str, str] = {}
        self._connection: HttpStream | WebSocketStream | None = None

    async def visit_repeatedly(self, stopping: asyncio.Event) -> None:
        """Connect repeatedly until `stopping` is set."""
        while not stopping.is_set():
            self._tally.visits[self.kind] += 1
            try:
                await self._visit()
            except StreamRefused:
                self._tally.refused += 1
            except CONNECTION_ERRORS:
                self._tally.cut += 1
            await asyncio.sleep(random.uniform(*BACKOFF_SECONDS))

    def runs_behind(self, numbers: Mapping[RunKey, int]) -> list[str]:
        """Return the runs of which the client has not received the last number."""
        if self.kind == "firehose":
            known = {key: self.progress.get(key.run_id) for key in numbers}
        elif self.kind == "multiplex":
            known = {key: self.progress.get(str(number)) for number, key in enumerate(self.runs)}
        else:
            known = {self.runs[0]: self.progress.get("")}
        return [
            f"{self.kind}, {key.run_id}: {progress and progress.number} of {numbers[key]}"
            for key, progress in known.items()
            if progress is None or progress.number != numbers[key]
        ]

    async def _visit(self) -> None:
        reader = asyncio.create_task(self._follow())
        try:
            _, pending = await asyncio.wait({reader}, timeout=None if self.is_permanent else self._length())
            if not pending:
                reader.result()
                return
        finally:
            reader.cancel()
            try:
                await asyncio.gather(reader, return_exceptions=True)
            finally:
                # Also if the task is cancelled while it disconnects.
                connection, self._connection = self._connection, None
                if connection is not None:
                    leaves_early = reader.cancelled() and not self.is_permanent
                    self._disconnect(connection, random.choice(DISCONNECTS) if leaves_early else "close")
        if random.random() < FORGET_CURSOR_SHARE:
            self._cursors.clear()
            self.progress.clear()

    def _disconnect(self, connection: HttpStream | WebSocketStream, how: Disconnect) -> None:
        self._tally.disconnects[how] += 1
        connection.disconnect(how)
        if how == "vanish":
            self._tally.abandoned.append(AbandonedConnection(time.monotonic(), connection))

    async def _follow(self) -> None:
        """Open a connection, and read it to its end."""
        self._connection, frames = await self._open()
        for progress in self.progress.values():
            progress.start_connection()
        pauses_at = asyncio.get_running_loop().time() + 1 if self.kind == "slow" else float("inf")
        async for frame in frames:
            identity = frame.get("id") or (frame.get("run_id", "") if self.kind == "firehose" else "")
            if frame["type"] == "close":
                self._tally.closes[frame["code"]] += 1
            elif frame["type"] == "error":
                raise StreamRefused(frame["detail"])
            elif identity or self.kind != "firehose":
                self.progress.setdefault(identity, RunProgress(self._tally)).handle(frame)
            if cursor := frame.get("cursor"):
                self._cursors[frame.get("id", "")] = cursor
            if asyncio.get_running_loop().time() > pauses_at:
                await asyncio.sleep(random.uniform(*SLOW_READ_SECONDS))
                pauses_at = float("inf")

    async def _open(self) -> tuple[HttpStream | WebSocketStream, AsyncIterator[Frame]]:
        port, cursor = random.choice(self._ports), self._cursors.get("")
        path = stream_path(self.runs[0], "?until=run")
        if self.kind == "websocket":
            messages = await WebSocketStream.open(port, path, cursor=cursor)
            return messages, messages.frames()
        if self.kind == "multiplex":
            messages = await WebSocketStream.open(port, "/api/v2/stream")
            self._connection = messages
            for number, run in enumerate(self.runs):
                wanted = {"dag_id": run.dag_id, "run_id": run.run_id, "until": "run"}
                cursor = self._cursors.get(str(number))
                await messages.send(op="subscribe", id=str(number), **wanted, **({"cursor": cursor} if cursor else {}))
            return messages, messages.frames()
        if self.kind == "firehose":
            path = f"/api/v2/stream?dag_id={self.runs[0].dag_id}&type=task"
        media_type = "application/x-ndjson" if self.kind == "ndjson" else "text/event-stream"
        lines = await HttpStream.open(port, path, media_type=media_type, cursor=cursor, slow=self.kind == "slow")
        return lines, lines.frames()

    @staticmethod
    def _length() -> float:
        return min(4 * VISIT_SECONDS, random.expovariate(1 / VISIT_SECONDS))


async def watch_to_end(ports: Sequence[int], key: RunKey, kind: str, tally: Tally, opened: Callable[[], None]) -> None:
    """Watch a run from before its first transition to its end, with as many connections as needed."""
    seen: dict[int, str] = {}
    cursor: str | None = None
    was_reset = False
    path = stream_path(key, "?until=run")
    while True:
        tally.visits[f"{kind} to the end"] += 1
        connection: HttpStream | WebSocketStream | None = None
        with suppress(StreamOver, *CONNECTION_ERRORS):
            port = random.choice(ports)
            if kind == "websocket":
                connection = await WebSocketStream.open(port, path, cursor=cursor)
            else:
                connection = await HttpStream.open(port, path, cursor=cursor)
            async for frame in connection.frames():
                if frame["type"] == "snapshot":
                    opened()
                cursor = frame.get("cursor") or cursor
                if frame["type"] == "task":
                    seen[frame["seq"]] = frame["state"]
                elif frame["type"] == "reset":
                    tally.resets[frame["reason"]] += 1
                    was_reset = True
                elif frame["type"] == "end":
                    connection.disconnect("close")
                    if frame["outcome"] != "result" or (len(seen) != TRANSITIONS and not was_reset):
                        tally.misses.append(f"{key.run_id}, {kind}: {[*seen.values()]}, {frame['outcome']}")
                    tally.completed += 1
                    return
        if connection is not None:
            connection.disconnect("close")
        await asyncio.sleep(random.uniform(*BACKOFF_SECONDS))
