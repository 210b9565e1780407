"""Exit codes of the command, and how it ends with one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import typer

from stream_server.errors import StreamServerError

T = TypeVar("T")


class ExitCode(IntEnum):
    RESULT = 0
    FAILURE = 1
    CONNECTION_LOST = 2
    TIMEOUT = 3
    USAGE = 64
    """As `EX_USAGE` in sysexits.h, because 2, click's usual code, is in use. Also if the server or Airflow refuses."""
    OUTPUT = 74
    """As `EX_IOERR` in sysexits.h: standard output has no space, or is closed from the start."""
    CLOSED_PIPE = 141
    """As in shells, 128 + SIGPIPE: the reader of standard output has gone."""


def print_message(text: str) -> None:
    """Print a line to standard error, if it is open."""
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def exit_with_error(text: str, code: int) -> NoReturn:
    print_message(f"stream-server: {text}")
    raise typer.Exit(code)


def run_or_exit(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine. Errors of stream_server end the command with exit code 1."""
    try:
        return asyncio.run(work)
    except StreamServerError as error:
        exit_with_error(str(error), ExitCode.FAILURE)
