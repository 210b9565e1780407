"""Who takes too long for something that everybody has the same time for: one timer, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Late = TypeVar("Late", bound=Hashable)

TURNS = 16
"""How often, at most, is looked in the time that all have."""


class Deadlines(Generic[Late]):
    """Calls at those who are late.

    Args:
        loop: The event loop.
        seconds: The time that each has.
        over: Called with who is late, once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, over: Callable[[Late], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._over = over
        # Who began first is late first, so that the order of beginning is that of the deadlines.
        self._due: dict[Late, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def start(self, who: Late) -> None:
        """Give somebody his time, from now on."""
        self._due.pop(who, None)
        self._due[who] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self, who: Late) -> None:
        """Somebody is done, or gone."""
        self._due.pop(who, None)

    def close(self) -> None:
        """Forget everybody."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = []
        for who, due in self._due.items():
            if due > now:
                soonest = max(due, now + self._seconds / TURNS)
                self._timer = self._loop.call_at(soonest, self._look)
                break
            late.append(who)
        for who in late:
            self.stop(who)
            self._over(who)
