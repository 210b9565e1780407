"""Telling the user what is being waited for, and for how long."""

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
    """Where long work reports to, one step at a time; whoever waits calls ``tick`` several times a second."""

    def start_step(self, what: str) -> None:
        """Begin a step: "the database is starting"."""

    def update_step(self, detail: str = "") -> None:
        """Say that the step goes on, and what of it is still missing."""

    def finish_step(self, *, done: bool) -> None:
        """End the step: done, or given up."""

    def print_line(self, text: str) -> None:
        """Show a line to the user."""


class SilentReporter:
    """Progress that nobody wants to see."""

    def start_step(self, what: str) -> None:
        """Begin a step."""

    def update_step(self, detail: str = "") -> None:
        """Go on."""

    def finish_step(self, *, done: bool) -> None:
        """End a step."""

    def print_line(self, text: str) -> None:
        """Say nothing."""


@contextmanager
def report_step(progress: ProgressReporter, what: str) -> Iterator[None]:
    """Report the body of a with statement as one step."""
    progress.start_step(what)
    done = False
    try:
        yield
        done = True
    finally:
        progress.finish_step(done=done)


def format_duration(duration: float) -> str:
    """Format a duration for people: 0.4 s, 12 s, 3 min 5 s."""
    if duration < 10:  # noqa: PLR2004
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _BrokenPipeConsole(Console):
    """A console whose reader may go: rich would end the program, instead of letting it clean up."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True


class ConsoleReporter:
    """Progress on a console: a moving line in a terminal, elsewhere plain lines now and then.

    Args:
        file: Where to write; standard error by default, which leaves standard output to results.
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
        """Begin a step."""
        self._what = what
        self._started = self._shown = self._clock()
        if self._console.is_terminal:
            self._status = self._console.status(Text(what))
            self._status.start()
        else:
            self._print(f"... {what}")

    def update_step(self, detail: str = "") -> None:
        """Show how long the step has taken, if it is time to."""
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
        """End the step with a line that stays."""
        if self._status:
            self._status.stop()
            self._status = None
        word = "ok " if done else "!! "
        self._print(f"{word} {self._what} ({format_duration(self._clock() - self._started)})")

    def print_line(self, text: str) -> None:
        """Show a line to the user, between steps or during one."""
        self._print(text)

    def _print(self, text: str) -> None:
        with suppress(OSError):  # nobody reads it any more
            # Addresses and commands are there to be copied: they are not wrapped.
            self._console.print(Text(text), soft_wrap=True)
