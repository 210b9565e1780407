"""Real tails, each with a recording double of the hub; one of them is a process of its own.

Run as a script, `python -m support.lossless_tails URL [CURSOR]`, it is that process. It follows the journal and writes
a line of JSON to standard output for each batch, [why, cursor, rows].
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import stream_server.journal.tail
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.journal.pacing import Pacing
from stream_server.journal.tail import IdleState, ReadReason, Tail
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.server.metrics import Metrics
from support.lossless_ledger import ReaderLog, Row, row_of

POLL_SECONDS = 0.2
CHECK_SECONDS = 1.0
# With the server's own backoff, tails would see few faults of a short schedule.
BACKOFF_SECONDS = (0.05, 0.5)
STOP_SECONDS = 10.0
PIPE_BYTES = 2**26
TESTS = Path(__file__).resolve().parents[1]

Recorder = Callable[[str, JournalPosition, list[Row]], None]


class RecordingHub:
    """The methods of a hub that a tail calls."""

    has_subscribers = True

    def __init__(self, record: Recorder) -> None:
        self._record = record

    def on_subscribe(self, call: Callable[[], None]) -> None:
        pass

    def wants_output_of(self, transition: Transition) -> bool:
        return False

    def start(self, cursor: JournalPosition) -> None:
        self._record("begin", cursor, [])

    async def reconnect(self, cursor: JournalPosition) -> None:
        pass

    def resync(self, cursor: JournalPosition, reason: str = "journal_changed") -> None:
        self._record(reason, cursor, [])

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None) -> None:
        self._record("", cursor, [row for row in map(row_of, transitions) if row is not None])


class UnreliableEvent(asyncio.Event):
    """A wake-up event that loses half of the notifications."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice

    def set(self) -> None:
        if self._dice.random() < 0.5:
            super().set()


def make_tail(url: str, record: Recorder, cursor: JournalPosition | None) -> Tail:
    """Make a tail that continues from a position."""
    tail = Tail(url, RecordingHub(record), poll_interval=POLL_SECONDS, check_interval=CHECK_SECONDS, observer=Metrics())
    tail._position = cursor
    return tail


def record_batch(line: ReaderLog, why: str, cursor: JournalPosition, rows: list[Row]) -> None:
    """Record a batch or a resync."""
    if why not in {"", "begin"}:
        line.record_resync(cursor, why)
    else:
        line.add(rows, cursor)


class TaskTail:
    """A tail in this process, which can be cancelled and started again."""

    def __init__(self, url: str, name: str, dice: random.Random | None = None) -> None:
        self.line = ReaderLog(name)
        self._url = url
        self._dice = dice
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start a new tail from the last position."""
        line = self.line
        self._tail = make_tail(self._url, lambda *batch: record_batch(line, *batch), line.cursor)
        if self._dice is not None:
            self._tail._wake = UnreliableEvent(self._dice)
        self.start_again()

    def start_again(self) -> None:
        """Start the same tail again, as after a long wait for PostgreSQL."""
        assert self._tail is not None
        self._task = asyncio.create_task(self._tail.run(), name=self.line.name)

    def wake(self) -> None:
        """Wake the tail, as the listener does when a notification arrives."""
        assert self._tail is not None
        self._tail._wake.set()

    # Tests read and change private state of the tail only here.

    @property
    def idle_state(self) -> IdleState:
        assert self._tail is not None
        return self._tail._idle_state

    def set_pacing(self, pacing: Pacing) -> None:
        assert self._tail is not None
        self._tail._pacing = pacing

    def on_read(self, record_read: Callable[[ReadReason, int, float], None]) -> None:
        """Call a function at each read, in place of the tail's observer."""
        assert self._tail is not None
        self._tail._observer.record_read = record_read  # type: ignore[assignment, method-assign]

    async def stop(self) -> None:
        """Cancel it, as the server does when it stops.

        Raises:
            AssertionError: The tail ignored the cancellation.
        """
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        obeyed = self._task.done()
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
        assert obeyed, f"{self.line.name} was cancelled, but still runs"

    def check(self) -> None:
        """Raise the error that ended the tail, if any."""
        if self._task is not None and self._task.done():
            self._task.result()


class ProcessTail:
    """A tail in a process of its own, which can be paused and killed."""

    def __init__(self, url: str, name: str) -> None:
        self.line = ReaderLog(name)
        self._url = url
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        self._stopping = False
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "support.lossless_tails", self._url),
            *([str(ResumeToken(self.line.cursor))] if self.line.cursor else []),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=PIPE_BYTES,
        )
        self._reading = asyncio.create_task(self._read(self._process), name=self.line.name)

    async def stop(self) -> None:
        """Kill the process, and read the rest of its output."""
        if self._process is None or self._reading is None:
            return
        self._stopping = True
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def check(self) -> None:
        """Raise an error if the process ended by itself."""
        if self._reading is not None and self._reading.done():
            self._reading.result()
            assert self._stopping, f"{self.line.name} ended with {self._process and self._process.returncode}"

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (text := await process.stdout.readline()).endswith(b"\n"):
            why, cursor, rows = json.loads(text)
            record_batch(self.line, why, ResumeToken.parse(cursor).position, [Row(*row) for row in rows])


@contextmanager
def reconnect_quickly() -> Iterator[None]:
    """Shorten the backoff of tails."""
    with patch.object(stream_server.journal.tail, "RECONNECT_SECONDS", BACKOFF_SECONDS):
        yield


def _print(why: str, cursor: JournalPosition, rows: list[Row]) -> None:
    # In one write: a line without its end, after a kill, does not count.
    sys.stdout.write(json.dumps([why, str(ResumeToken(cursor)), rows]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    url, *rest = sys.argv[1:]
    with reconnect_quickly():
        asyncio.run(make_tail(url, _print, ResumeToken.parse(rest[0]).position if rest else None).run())
