"""A worker lives no longer than the process that has started it, however that ends.

The settings come over a pipe, which stays open for as long as that process lives. A thread waits for its end, so that
also a worker whose event loop is stuck goes.
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
    """Read the settings. They hold secrets, so that neither arguments nor environment will do."""
    settings = pickle.load(pipe)  # noqa: S301 # written by the process that has started this one
    assert isinstance(settings, Settings), "that is what is written"
    return settings


def watch_parent(settings: Settings) -> None:
    """End this process when the other one is gone: with a drain, and by force where that takes too long."""
    threading.Thread(
        target=_wait_for_parent_end, args=(2 * settings.grace_period + 1,), name="leash", daemon=True
    ).start()


def _wait_for_parent_end(patience: float) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os._exit(1)
