"""Keeping secrets of the command line from those who list processes.

`ps` and `/proc/PID/cmdline` show the memory that the arguments were handed over in. It is ours to write to; what is
secret there is overwritten with asterisks. PostgreSQL shows its state in the same way on Linux and macOS
(`PS_USE_CLOBBER_ARGV` in its `ps_status.c`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stream_server.urls import mask_secrets

SECRET_OPTIONS = frozenset({"--password", "--token"})
"""Options whose values are secret altogether."""

URL_OPTIONS = frozenset({"--airflow-ui-url", "--airflow-url", "--database-url", "--url"})
"""Options whose values may hold a password."""

_ARG_START, _ARG_END = 47, 48
"""Places of the addresses of the arguments in /proc/self/stat, counted from 0 (proc_pid_stat(5))."""


def redact_command_line() -> bool:
    """Overwrite the secrets among the arguments of this process.

    Returns:
        Whether nothing secret can be seen any more. False where the system does not let us.
    """
    arguments = [os.fsencode(argument) for argument in sys.orig_argv]
    shown = redact_arguments(arguments)
    if shown == arguments:
        return True
    try:
        places = list(_argument_addresses(arguments))
    except (OSError, ValueError, AttributeError):
        return False
    for place, before, after in zip(places, arguments, shown, strict=True):
        assert len(before) == len(after), "only as much as there was is overwritten"
        if before != after:
            ctypes.memmove(place, after, len(after))
    return True


def redact_arguments(arguments: Sequence[bytes]) -> list[bytes]:
    """Return arguments of the same lengths that may be seen."""
    shown = []
    option = ""
    for argument in arguments:
        # One character for each byte, so that the length stays what it is.
        name, equals, value = argument.decode("latin-1").partition("=")
        if option in SECRET_OPTIONS | URL_OPTIONS:
            value, name, equals = name + equals + value, "", ""
        else:
            option = name
        shown.append((name + equals + _redact_value(option, value)).encode("latin-1"))
        option = option if name and not equals else ""
    return shown


def _redact_value(option: str, value: str) -> str:
    if option in SECRET_OPTIONS:
        return "*" * len(value)
    return mask_secrets(value) if option in URL_OPTIONS else value


def _argument_addresses(arguments: Sequence[bytes]) -> Iterator[int]:
    """Return the addresses of the arguments in our memory.

    Raises:
        OSError, AttributeError: The system has no way to tell.
        ValueError: Something else is there.
    """
    if sys.platform == "darwin":
        yield from _argument_addresses_on_macos(arguments)
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    # The first two fields, number and name, are cut off above.
    place, end = int(fields[_ARG_START - 2]), int(fields[_ARG_END - 2])
    memory = b"".join(argument + b"\0" for argument in arguments)
    if end - place != len(memory) or ctypes.string_at(place, len(memory)) != memory:
        raise ValueError("The arguments are not where they should be")
    for argument in arguments:
        yield place
        place += len(argument) + 1


def _argument_addresses_on_macos(arguments: Sequence[bytes]) -> Iterator[int]:
    vector = ctypes.CDLL(None)._NSGetArgv  # noqa: SLF001 # its name in crt_externs.h
    vector.restype = ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
    for argument, place in zip(arguments, vector().contents, strict=False):
        if not place or ctypes.string_at(place) != argument:
            raise ValueError("The arguments are not where they should be")
        yield place
