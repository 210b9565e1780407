"""A timeout that many objects share: one timer of the event loop, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

CHECKS_PER_TIMEOUT = 16
"""Most timer events in one timeout: what times out is found late by at most a sixteenth of the timeout."""


class SharedTimeouts(Generic[Key]):
    """Calls back for each key that was started and not stopped in time.

    Args:
        loop: The event loop.
        seconds: The timeout.
        on_timeout: Called with a key that has timed out, once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_timeout: Callable[[Key], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_timeout = on_timeout
        # All have the same timeout, so keys in order of their start are in order of their deadlines.
        self._due_at: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due_at)

    def start(self, key: Key) -> None:
        """Start the timeout of a key, anew if it was started before."""
        self._due_at.pop(key, None)
        self._due_at[key] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def stop(self, key: Key) -> None:
        self._due_at.pop(key, None)

    def close(self) -> None:
        """Stop the timeouts of all keys."""
        self._due_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        expired = []
        for key, due in self._due_at.items():
            if due > now:
                soonest = max(due, now + self._seconds / CHECKS_PER_TIMEOUT)
                self._timer = self._loop.call_at(soonest, self._expire)
                break
            expired.append(key)
        for key in expired:
            self.stop(key)
            self._on_timeout(key)
