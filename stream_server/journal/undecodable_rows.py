"""What readers do with rows and messages that they cannot decode: log each cause once, resync at a limited rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MAX_CAUSES = 100
"""Causes that are remembered. Further ones are counted only, so that odd input cannot fill the log or the memory."""

RESYNC_SECONDS = 5.0
"""Shortest time between two resyncs: each makes every process read all its watched runs again."""


class Causes:
    """The causes that were logged."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def is_new(self, cause: str) -> bool:
        """Whether a cause must be logged. It is remembered."""
        if cause in self._known or len(self._known) >= MAX_CAUSES:
            return False
        self._known.add(cause)
        return True


class ResyncTimer:
    """Resyncs at the first request at once, and later at most every `RESYNC_SECONDS`. No request is dropped.

    Args:
        resync: Called in the event loop of the requests.
    """

    def __init__(self, resync: Callable[[], None]) -> None:
        self._resync = resync
        self._earliest = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def request(self) -> None:
        """Resync now, or as soon as the rate allows it. Requests that wait are one."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._earliest:
            self._run()
        else:
            self._timer = loop.call_at(self._earliest, self._run)

    def cancel(self) -> None:
        """Drop a request that waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        self._earliest = asyncio.get_running_loop().time() + RESYNC_SECONDS
        self._resync()
