"""Reports steps of long work, and how long they take, to the user."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Protocol

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.status import Status

PLAIN_INTERVAL_SECONDS = 10.0
LIVE_INTERVAL_SECONDS = 0.2


class ProgressReporter(Protocol):
    """Receives one step at a time. Code that waits calls `update_step` several times a second."""

    def start_step(self, what: str) -> None:
        """Start a step, such as "Starting PostgreSQL"."""

    def update_step(self, detail: str = "") -> None:
        """Report that the step continues, and what it waits for."""

    def finish_step(self, *, done: bool) -> None:
        """End the step; `done` is false if it failed."""

    def print_line(self, text: str) -> None:
        """Print a line for the user."""


class SilentReporter:
    """Reports nothing."""

    def start_step(self, what: str) -> None: ...

    def update_step(self, detail: str = "") -> None: ...

    def finish_step(self, *, done: bool) -> None: ...

    def print_line(self, text: str) -> None: ...


@contextmanager
def report_step(reporter: ProgressReporter, what: str) -> Iterator[None]:
    """Report the body of a with statement as one step."""
    reporter.start_step(what)
    done = False
    try:
        yield
        done = True
    finally:
        reporter.finish_step(done=done)


def format_duration(duration: float) -> str:
    """Return a duration as text: 0.4 s, 12 s, 3 min 5 s."""
    if duration < 10:  # noqa: PLR2004
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _BrokenPipeConsole(Console):
    """A console that survives a broken pipe. Rich would end the program, which must clean up first."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ConsoleReporter:
    """Reports to a console: an updated line in a terminal, otherwise a plain line every few seconds.

    Args:
        file: Output file; standard error by default, because standard output is for results.
        clock: Monotonic seconds.
    """

    def __init__(self, file: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = _BrokenPipeConsole(file=file, stderr=file is None, highlight=False)
        self._clock = clock
        self._what = ""
        self._started = 0.0
        self._shown = 0.0
        self._status: Status | None = None

    def start_step(self, what: str) -> None:
        self._what = what
        self._started = self._shown = self._clock()
        if self._console.is_terminal:
            self._status = self._console.status(Text(what))
            self._status.start()
        else:
            self._print(f"... {what}")

    def update_step(self, detail: str = "") -> None:
        now = self._clock()
        if now - self._shown < (LIVE_INTERVAL_SECONDS if self._status else PLAIN_INTERVAL_SECONDS):
            return
        self._shown = now
        text = f"{self._what} ({format_duration(now - self._started)}{', ' + detail if detail else ''})"
        if self._status:
            self._status.update(Text(text))
        else:
            self._print(f"... {text}")

    def finish_step(self, *, done: bool) -> None:
        if self._status:
            self._status.stop()
            self._status = None
        word = "ok " if done else "!! "
        self._print(f"{word} {self._what} ({format_duration(self._clock() - self._started)})")

    def print_line(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        with suppress(OSError):  # the terminal or the pipe is closed
            # Not wrapped, so that users can copy addresses and commands.
            self._console.print(Text(text), soft_wrap=True)
