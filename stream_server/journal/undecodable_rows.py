"""Rows and messages that can't be decoded: each cause is logged once, and clients resync at a limited rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MAX_CAUSES = 100
"""Maximum number of causes. Further ones are not logged, so that bad input can't fill the log or the memory."""

RESYNC_SECONDS = 5.0
"""Shortest time between two resyncs: for each, every process reads all its watched runs again."""


class LoggedCauses:
    """The causes that were logged."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def add_if_new(self, cause: str) -> bool:
        """Add a cause. Return whether it must be logged."""
        if cause in self._known or len(self._known) >= MAX_CAUSES:
            return False
        self._known.add(cause)
        return True


class ResyncTimer:
    """Resyncs at once at the first request, and then at most every `RESYNC_SECONDS`. No request is dropped.

    Args:
        resync: Called in the event loop.
    """

    def __init__(self, resync: Callable[[], None]) -> None:
        self._resync = resync
        self._earliest = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def request(self) -> None:
        """Resync now, or as soon as the rate allows it. Pending requests are merged."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._earliest:
            self._run()
        else:
            self._timer = loop.call_at(self._earliest, self._run)

    def cancel(self) -> None:
        """Drop the pending request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        self._earliest = asyncio.get_running_loop().time() + RESYNC_SECONDS
        self._resync()
