"""`stream-server` that measures the CPU time of each stage between SIGUSR1 and SIGUSR2, for `bench.own_runs`.

At SIGUSR1 the functions of the stages are replaced by measured ones, at SIGUSR2 the times are written as JSON to the
file that the environment variable `BENCH_STAGES` names. Before SIGUSR1 the server is as any other.
"""

from __future__ import annotations

import json
import os
import signal
import time
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from stream_server.__main__ import main
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.hub.hub import Hub
from stream_server.journal import reader
from stream_server.journal.reader import JournalReader
from stream_server.protocol import wire
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

    def as_json(self) -> str:
        """Return the seconds of each stage since the start."""
        used = time.process_time() - self._began
        return json.dumps({**self._seconds, OTHER: used - sum(self._seconds.values())})

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


def _write_file(path: Path, text: str) -> None:
    """Write a file that is complete as soon as it exists."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


if __name__ == "__main__":
    stages = StageTimes()
    target = Path(os.environ[FILE_VARIABLE])
    signal.signal(signal.SIGUSR1, lambda _number, _frame: stages.start())
    signal.signal(signal.SIGUSR2, lambda _number, _frame: _write_file(target, stages.as_json()))
    main()
