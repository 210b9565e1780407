"""Standard output and standard error of the command, whatever they are: a terminal, a pipe, a file, or closed.

Trouble with them must not look like a failed run, so nothing here ends the process with exit code 1. An `OSError` may
not reach Typer either: it ends the process with exit code 1 on a closed pipe.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

from rich.console import Console
from typing_extensions import override

from stream_server.cli.exit import ExitCode


class OutputError(Exception):
    """Standard output takes nothing any more. `exit_code` is what the command ends with."""

    def __init__(self, error: OSError) -> None:
        self.exit_code = ExitCode.CLOSED_PIPE if isinstance(error, BrokenPipeError) else ExitCode.OUTPUT
        super().__init__(f"cannot write to standard output: {error.strerror}")


class OutputConsole(Console):
    """A console on standard output. Writing to a closed pipe raises `OutputError`."""

    @override
    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise OutputError(BrokenPipeError())


class ErrorConsole(Console):
    """A console on standard error. Once that is a closed pipe, it prints nothing."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    @override
    def on_broken_pipe(self) -> None:
        self.quiet = True


def configure_encodings() -> None:
    """Escape characters that the encoding of a terminal does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_output(text: str) -> None:
    """Write a line to standard output, as UTF-8 whatever the locale is. Programs read it.

    Raises:
        OutputError: Standard output is closed, or has no space.
    """
    stream = sys.stdout
    if stream is None:
        # The process was started with a closed standard output.
        raise OutputError(OSError(errno.EBADF, "it is closed"))
    try:
        # JSON in the database may contain half a surrogate pair, which UTF-8 does not have.
        data = (text + "\n").encode(errors="replace")
        if (buffer := getattr(stream, "buffer", None)) is None:
            stream.write(data.decode())
        else:
            stream.flush()
            buffer.write(data)
        stream.flush()
    except OSError as error:
        raise OutputError(error) from error


def discard_output() -> None:
    """Discard what is still buffered for standard output, so that the interpreter does not fail to write it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
