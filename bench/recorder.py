"""Recorders: child processes that record when they receive a transition, and send the recording at the end.

While transitions are written, a recorder only receives; it sends, computes and collects nothing.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import uvloop

START_SECONDS = 30.0
STRAGGLER_SECONDS = 10.0
"""Seconds after the last commit in which a transition can arrive; later it counts as lost."""

SETTLE_SECONDS = 0.2
"""How long to wait after the last transition, for duplicates."""

END_SECONDS = 5.0

_processes = multiprocessing.get_context("spawn")


class BenchmarkError(Exception):
    """The benchmark itself failed, so there is no result."""


class Recorder:
    """The parent's end of a recorder."""

    def __init__(self, name: str, pid: int, control: Connection) -> None:
        self.name = name
        self.pid = pid
        self._control = control

    def wait_until_ready(self) -> None:
        """Wait until it can receive transitions."""
        self._receive(START_SECONDS)

    def collect(self, written: int) -> Any:  # noqa: ANN401 (each recorder has its own type)
        """Return the recording, once it has all written transitions or the time is over."""
        try:
            self._control.send(written)
        except OSError as error:
            raise BenchmarkError(f"The {self.name} ended early; its error is above") from error
        return self._receive(STRAGGLER_SECONDS + END_SECONDS)

    def _receive(self, within: float) -> Any:  # noqa: ANN401
        if not self._control.poll(within):
            raise BenchmarkError(f"The {self.name} did not answer within {within:g} s")
        try:
            return self._control.recv()
        except EOFError as error:
            raise BenchmarkError(f"The {self.name} ended early; its error is above") from error


@contextmanager
def running_recorder(name: str, body: Callable[..., Coroutine[Any, Any, None]], *args: object) -> Iterator[Recorder]:
    """Run `body(Link, *args)` in a child process that ends with this one."""
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_run, args=(body, theirs, args), name=name, daemon=True)
    process.start()
    theirs.close()
    try:
        assert process.pid is not None, "it was started"
        yield Recorder(name, process.pid, ours)
    finally:
        ours.close()
        process.join(END_SECONDS)
        process.kill()
        process.join()


class RecorderLink:
    """The recorder's end."""

    def __init__(self, control: Connection) -> None:
        self._control = control

    async def wait_for_end(self, noted: Callable[[], int]) -> None:
        """Report that the recorder is ready; return when all has been recorded or the time is over.

        Args:
            noted: Returns the number of recorded transitions; called only after the last write.
        """
        self._control.send("ready")
        loop = asyncio.get_running_loop()
        requested = asyncio.Event()
        loop.add_reader(self._control.fileno(), requested.set)
        await requested.wait()
        loop.remove_reader(self._control.fileno())
        try:
            written: int = self._control.recv()
        except EOFError:
            # The parent has exited.
            raise SystemExit(1) from None
        deadline = loop.time() + STRAGGLER_SECONDS
        while noted() < written and loop.time() < deadline:  # noqa: ASYNC110 # an event would be set while we measure
            await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLE_SECONDS)

    def send(self, recording: object) -> None:
        """Send the recording."""
        self._control.send(recording)


def _run(body: Callable[..., Coroutine[Any, Any, None]], control: Connection, args: tuple[object, ...]) -> None:
    # Ctrl-C reaches the whole process group; this process reacts to the end of the pipe instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A garbage-collection pause here would count as the server's.
    gc.disable()
    uvloop.run(body(RecorderLink(control), *args))
