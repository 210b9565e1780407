"""Wait for a condition with a deadline, never for time to pass."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.1
"""Seconds between two checks: short at first, and longer where a tenth of the waiting adds little to it.

Many conditions take more CPU time than a pause: they list processes, or call Airflow's API.
"""

Answer = TypeVar("Answer")


def eventually(condition: Callable[[], Answer], within: float = 10.0, what: str = "the condition") -> Answer:
    """Call `condition` until its value is true, and return it.

    Raises:
        AssertionError: It was not true within `within` seconds; the message has the last value.
    """
    began = time.monotonic()
    while not (answer := condition()):
        assert time.monotonic() < began + within, f"{what} did not come true within {within} s; last answer: {answer!r}"
        time.sleep(_pause_after(began))
    return answer


async def eventually_answered(
    condition: Callable[[], Awaitable[Answer]], within: float = 10.0, what: str = "the answer"
) -> Answer:
    """Like ``eventually``, with an awaitable condition."""
    began = time.monotonic()
    while not (answer := await condition()):
        assert time.monotonic() < began + within, f"{what} did not come within {within} s; last answer: {answer!r}"
        await asyncio.sleep(_pause_after(began))
    return answer


async def eventually_async(
    condition: Callable[[], Answer], within: float = 10.0, what: str = "the condition"
) -> Answer:
    """Like ``eventually``, without blocking the event loop."""
    began = time.monotonic()
    while not (answer := condition()):
        assert time.monotonic() < began + within, f"{what} did not come true within {within} s; last answer: {answer!r}"
        await asyncio.sleep(_pause_after(began))
    return answer


def _pause_after(began: float) -> float:
    return min(max((time.monotonic() - began) / 10, SHORTEST_PAUSE), LONGEST_PAUSE)
