"""Errors of the demo.

DemoError
└── StartError    a process did not start, or ended before it was ready
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TAIL_LINES = 25
TAIL_BYTES = 16_384


class DemoError(Exception):
    """The demo cannot continue. The text is meant for the user."""


class StartError(DemoError):
    """A process did not start. The text ends with the last lines of its log.

    Attributes:
        process: Name of the process for the user.
        log: Log file of the process.
    """

    def __init__(self, process: str, reason: str, log: Path) -> None:
        self.process = process
        self.log = log
        super().__init__(f"{process} {reason}.\nLast lines of {log}:\n{read_last_lines(log)}")


def read_last_lines(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file, indented; a note if it is empty or unreadable."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"  (unreadable: {error.strerror})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"
