"""Wait for a condition with a deadline, never for time to pass."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.02

Answer = TypeVar("Answer")


def eventually(condition: Callable[[], Answer], within: float = 10.0, what: str = "the condition") -> Answer:
    """Call `condition` until its value is true, and return it.

    Raises:
        AssertionError: It was not true within `within` seconds; the message has the last value.
    """
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {within} s; last answer: {answer!r}"
        time.sleep(POLL_SECONDS)
    return answer


async def eventually_answered(
    condition: Callable[[], Awaitable[Answer]], within: float = 10.0, what: str = "the answer"
) -> Answer:
    """Like ``eventually``, with an awaitable condition."""
    deadline = time.monotonic() + within
    while not (answer := await condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {within} s; last answer: {answer!r}"
        await asyncio.sleep(POLL_SECONDS)
    return answer


async def eventually_async(
    condition: Callable[[], Answer], within: float = 10.0, what: str = "the condition"
) -> Answer:
    """Like ``eventually``, without blocking the event loop."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {within} s; last answer: {answer!r}"
        await asyncio.sleep(POLL_SECONDS)
    return answer
