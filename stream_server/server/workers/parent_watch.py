"""A worker ends with the process that started it, however that process ends.

The parent writes the settings to a pipe and keeps the pipe open while it lives. A thread waits for the end of the pipe,
so that a worker whose event loop is stuck ends too.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from typing import BinaryIO

from stream_server.settings import Settings


def read_settings(pipe: BinaryIO) -> Settings:
    """Read the settings from the pipe: they hold secrets, which arguments and environment variables would expose."""
    settings = pickle.load(pipe)  # noqa: S301 # written by the process that has started this one
    assert isinstance(settings, Settings), "the supervisor writes settings"
    return settings


def watch_parent(settings: Settings) -> None:
    """Start a thread that ends this process when the parent has ended: by SIGTERM, and after a timeout by force."""
    timeout = settings.grace_period + 1
    threading.Thread(target=_wait_for_parent_end, args=(timeout,), name="parent watch", daemon=True).start()


def _wait_for_parent_end(timeout: float) -> None:
    # The descriptor itself: `sys.stdin.buffer` takes a lock, which the interpreter needs at its end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(timeout)
    os._exit(1)
