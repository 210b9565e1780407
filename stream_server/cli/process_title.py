"""Redacts secrets in the command line of this process, which all users of the host can list.

`ps` and `/proc/PID/cmdline` read the memory of the process that holds its arguments. This module overwrites the secrets
there with asterisks. PostgreSQL changes its title in the same way on Linux and macOS (`PS_USE_CLOBBER_ARGV` in its
`ps_status.c`).

The package `setproctitle` is no alternative: on Linux it joins the arguments to one, clears `/proc/PID/environ`, and
changes the name of the process, and it does not report whether it could replace the title
(docs/decisions/0013).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stream_server.urls import mask_secrets

SECRET_OPTIONS = frozenset({"--password", "--token"})
"""Options with a secret value."""

URL_OPTIONS = frozenset({"--airflow-ui-url", "--airflow-url", "--database-url", "--url"})
"""Options with a URL, which may contain a password."""

_ARG_START, _ARG_END = 47, 48
"""Indexes of the fields `arg_start` and `arg_end` in /proc/self/stat, from 0 (proc_pid_stat(5))."""


def redact_command_line() -> bool:
    """Overwrite the secrets in the arguments of this process.

    Returns:
        Whether the arguments contain no secret now. False where the operating system does not allow it.
    """
    arguments = [os.fsencode(argument) for argument in sys.orig_argv]
    redacted = redact_arguments(arguments)
    if redacted == arguments:
        return True
    try:
        addresses = list(_argument_addresses(arguments))
    except (OSError, ValueError, AttributeError):
        return False
    for address, before, after in zip(addresses, arguments, redacted, strict=True):
        assert len(before) == len(after), "a longer argument would overwrite the next one"
        if before != after:
            ctypes.memmove(address, after, len(after))
    return True


def redact_arguments(arguments: Sequence[bytes]) -> list[bytes]:
    """Return the arguments without secrets. Each keeps its length."""
    redacted = []
    option = ""
    for argument in arguments:
        # Latin-1 has one character for each byte, which preserves the length.
        name, equals, value = argument.decode("latin-1").partition("=")
        if option in SECRET_OPTIONS | URL_OPTIONS:
            value, name, equals = name + equals + value, "", ""
        else:
            option = name
        redacted.append((name + equals + _redact_value(option, value)).encode("latin-1"))
        option = option if name and not equals else ""
    return redacted


def _redact_value(option: str, value: str) -> str:
    if option in SECRET_OPTIONS:
        return "*" * len(value)
    return mask_secrets(value) if option in URL_OPTIONS else value


def _argument_addresses(arguments: Sequence[bytes]) -> Iterator[int]:
    """Return the memory addresses of the arguments.

    Raises:
        OSError, AttributeError: The operating system does not provide them.
        ValueError: The memory there does not contain the arguments.
    """
    if sys.platform == "darwin":
        yield from _argument_addresses_on_macos(arguments)
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    # Minus 2, because the split above removes the first two fields, process ID and name.
    address, end = int(fields[_ARG_START - 2]), int(fields[_ARG_END - 2])
    memory = b"".join(argument + b"\0" for argument in arguments)
    if end - address != len(memory) or ctypes.string_at(address, len(memory)) != memory:
        raise ValueError("the memory does not contain the arguments")
    for argument in arguments:
        yield address
        address += len(argument) + 1


def _argument_addresses_on_macos(arguments: Sequence[bytes]) -> Iterator[int]:
    vector = ctypes.CDLL(None)._NSGetArgv  # noqa: SLF001 # public in crt_externs.h
    vector.restype = ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
    for argument, address in zip(arguments, vector().contents, strict=False):
        if not address or ctypes.string_at(address) != argument:
            raise ValueError("the memory does not contain the arguments")
        yield address
