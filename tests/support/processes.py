"""Other processes, as psutil shows them."""

from __future__ import annotations

from contextlib import suppress

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. It can end at any moment, also between two calls."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
