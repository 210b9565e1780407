"""Who takes too long for something that everybody has the same time for: one timer, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

CHECKS_PER_TIMEOUT = 16
"""How often, at most, is looked in the time that all have."""


class SharedTimeouts(Generic[Key]):
    """Calls at those who are late.

    Args:
        loop: The event loop.
        seconds: The time that each has.
        over: Called with who is late, once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, over: Callable[[Key], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_timeout = over
        # Who began first is late first, so that the order of beginning is that of the deadlines.
        self._due_at: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due_at)

    def start(self, who: Key) -> None:
        """Give somebody his time, from now on."""
        self._due_at.pop(who, None)
        self._due_at[who] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def stop(self, who: Key) -> None:
        """Somebody is done, or gone."""
        self._due_at.pop(who, None)

    def close(self) -> None:
        """Forget everybody."""
        self._due_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = []
        for who, due in self._due_at.items():
            if due > now:
                soonest = max(due, now + self._seconds / CHECKS_PER_TIMEOUT)
                self._timer = self._loop.call_at(soonest, self._expire)
                break
            late.append(who)
        for who in late:
            self.stop(who)
            self._on_timeout(who)
