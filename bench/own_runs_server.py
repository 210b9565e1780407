"""`stream-server` that measures itself between SIGUSR1 and SIGUSR2, for `bench.own_runs`.

It measures the CPU time of each stage, when each transition is read and written, and what may delay it: the reads of
the tail, passes of the garbage collector, and the wait of the process for a core. At SIGUSR1 functions are replaced by
measured ones, at SIGUSR2 the figures are written as JSON to the file that the environment variable `BENCH_STAGES`
names. Before SIGUSR1 the server is as any other.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from stream_server.__main__ import main
from stream_server.http.delivery.scheduler import JoinedFrames, WriteScheduler
from stream_server.http.delivery.writers import DirectWriter
from stream_server.hub.hub import Hub
from stream_server.journal import reader
from stream_server.journal.pacing import Pacing
from stream_server.journal.reader import JournalReader
from stream_server.protocol import wire
from stream_server.protocol.frames import TaskTransition
from stream_server.protocol.wire import Wire

FILE_VARIABLE = "BENCH_STAGES"
READ, DECODE, JUDGE, ENCODE, WRITE, OTHER = STAGES = ("read", "decode", "judge", "encode", "write", "other")
"""`read` is the query, without asyncpg's part in the event loop's callbacks; `judge` is the hub's dispatch: to apply
transitions, and to find the outcome; `other` is the event loop, its callbacks, the tail between its reads, and other
threads."""


class StageTimes:
    """Seconds of CPU by stage. A stage within another one counts only for itself."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._inner = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Replace the functions of the stages, and begin to count."""
        reader.decode_rows = self._measured(DECODE, reader.decode_rows)
        JournalReader.read_after = self._measured_steps(READ, JournalReader.read_after)  # type: ignore[method-assign]
        Hub.dispatch = self._measured(JUDGE, Hub.dispatch)  # type: ignore[method-assign]
        Wire.framed = self._measured(ENCODE, Wire.framed)  # type: ignore[method-assign]
        wire._encode_line = self._measured(ENCODE, wire._encode_line)  # noqa: SLF001 # what `Wire.json` calls
        WriteScheduler._write_due = self._measured(WRITE, WriteScheduler._write_due)  # type: ignore[method-assign]  # noqa: SLF001 # its only entry
        self._began = time.process_time()

    def as_dict(self) -> dict[str, float]:
        """Return the seconds of each stage since the start."""
        used = time.process_time() - self._began
        return {**self._seconds, OTHER: used - sum(self._seconds.values())}

    def _call(self, stage: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401 (that of the function)
        outer, self._inner = self._inner, 0.0
        began = time.thread_time()
        try:
            return function()
        finally:
            took = time.thread_time() - began
            self._seconds[stage] += took - self._inner
            self._inner = outer + took

    def _measured(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (those of the function)
            return self._call(stage, partial(function, *args, **kwargs))

        return measured

    def _measured_steps(
        self, stage: str, function: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        @wraps(function)
        async def measured(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (those of the function)
            return await self._step(stage, function(*args, **kwargs))

        return measured

    @types.coroutine
    def _step(self, stage: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run a coroutine, and measure it from one wait to the next."""
        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            try:
                awaited = self._call(stage, step)
            except StopIteration as end:
                return end.value
            try:
                step = partial(coroutine.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 # the coroutine gets it
                step = partial(coroutine.throw, error)


class Moments:
    """When transitions are read and written, and what happens meanwhile. Times are those of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.read: dict[int, float] = {}
        """When the batch of a transition is passed to the hub, by its try number."""

        self.written: dict[int, float] = {}
        self.reads: list[tuple[float, int]] = []
        """Seconds of each read of the tail, and its number of transactions."""

        self.collections: list[float] = []
        """Seconds of CPU of each pass of the garbage collector."""

        self._collection_began = 0.0
        self._waited = 0

    def start(self) -> None:
        """Replace functions, and begin to record."""
        dispatch, write_frames, record = Hub.dispatch, DirectWriter.write_frames, Pacing.record

        def dispatch_recorded(hub: Hub, transitions: Sequence[Any], *rest: Any) -> None:  # noqa: ANN401
            at = time.monotonic()
            self.read.update((one.try_number, at) for one in transitions)
            dispatch(hub, transitions, *rest)

        def write_recorded(writer: DirectWriter, wires: Sequence[Wire], joined: JoinedFrames) -> None:
            write_frames(writer, wires, joined)
            at = time.monotonic()
            self.written.update((one.frame.try_number, at) for one in wires if isinstance(one.frame, TaskTransition))

        def record_recorded(pacing: Pacing, now: float, waits: Collection[float], took: float) -> None:
            self.reads.append((took, len(waits)))
            record(pacing, now, waits, took)

        Hub.dispatch = dispatch_recorded  # type: ignore[assignment,method-assign]
        DirectWriter.write_frames = write_recorded  # type: ignore[assignment,method-assign]
        Pacing.record = record_recorded  # type: ignore[assignment,method-assign]
        gc.callbacks.append(self._on_collection)
        self._waited = _waited_nanoseconds()

    def as_dict(self) -> dict[str, Any]:
        """Return what was recorded since the start."""
        return {
            "read": self.read,
            "written": self.written,
            "reads": self.reads,
            "collections": self.collections,
            "waited_for_core": (_waited_nanoseconds() - self._waited) / 1e9,
        }

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
        else:
            self.collections.append(time.thread_time() - self._collection_began)


def _waited_nanoseconds() -> int:
    """Return how long the main thread was ready to run, and had no core."""
    return int(Path("/proc/self/schedstat").read_text().split()[1])


def _write_file(path: Path, text: str) -> None:
    """Write a file that is complete as soon as it exists."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


if __name__ == "__main__":
    stages, moments = StageTimes(), Moments()
    target = Path(os.environ[FILE_VARIABLE])

    def start(_number: int, _frame: object) -> None:
        # The moments are recorded within the stages, and are part of their cost.
        moments.start()
        stages.start()

    def stop(_number: int, _frame: object) -> None:
        _write_file(target, json.dumps({"stages": stages.as_dict(), **moments.as_dict()}))

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, stop)
    main()
