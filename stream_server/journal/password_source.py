"""Passwords that change while the server runs: read from a file or from a command, for each new connection."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

COMMAND_SECONDS = 10.0
"""How long a command may run."""


class PasswordUnavailable(OSError):
    """The password can't be read. An `OSError`, so that the next host is tried."""


def make_password_reader(file: str | None, command: str | None) -> Callable[[], Awaitable[str]] | None:
    """Return a function that reads the password; `None` if there is neither a file nor a command."""
    if command:
        return lambda: _run_command(command)
    if file:
        return lambda: asyncio.to_thread(_read_file, file)
    return None


def _read_file(file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PasswordUnavailable(f"the password file {file} can't be read ({reason})") from error
    return _first_line(text)


async def _run_command(command: str) -> str:
    """Return the first line that a command prints. No error contains the command, since it may contain a secret."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except (OSError, ValueError) as error:
        raise PasswordUnavailable("the password command can't be started") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except asyncio.TimeoutError:
        raise PasswordUnavailable(f"the password command did not end within {COMMAND_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise PasswordUnavailable(f"the password command ended with exit code {process.returncode}")
    return _first_line(output.decode(errors="replace"))


def _first_line(text: str) -> str:
    """Return a text without the line break at its end, and what follows it."""
    password = text.split("\n", 1)[0].removesuffix("\r")
    if not password:
        raise PasswordUnavailable("the password is empty")
    return password
