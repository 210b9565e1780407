"""Waits between attempts, for the client, the journal and the server. Pure: the caller waits.

`protocol` is the lowest layer that all three may import.
"""

from __future__ import annotations

import random

FULL_JITTER = (0.0, 1.0)
"""Bounds of the random factor for many clients that lost the same server: they must not reconnect at once."""


NO_JITTER = (1.0, 1.0)


class Backoff:
    """Waits that double from `first` to `longest`, each multiplied by a random factor.

    Args:
        first: The first wait in seconds, and the first one after `reset`.
        longest: Upper bound of the wait before the random factor.
        jitter: Bounds of the random factor.
    """

    __slots__ = ("_first", "_jitter", "_longest", "_wait")

    def __init__(self, first: float, longest: float, *, jitter: tuple[float, float] = (0.5, 1.5)) -> None:
        self._first = self._wait = first
        self._longest = longest
        self._jitter = jitter

    def next_wait(self) -> float:
        """Return the seconds to wait now, and double the wait after that."""
        wait, self._wait = self._wait, min(self._wait * 2, self._longest)
        return wait * random.uniform(*self._jitter)  # noqa: S311 # not for secrets

    def reset(self) -> None:
        """Start with the first wait again, because an attempt succeeded."""
        self._wait = self._first

    def reset_after(self, seconds: float) -> None:
        """Reset if an attempt worked for longer than the longest wait: a shorter one counts as failed."""
        if seconds > self._longest:
            self.reset()
