from __future__ import annotations

import asyncio
from itertools import pairwise

from stream_server.http.deadlines import SharedTimeouts
from support.waiting import eventually_async


async def test_overdue_keys_are_passed_once_in_the_order_of_their_starts() -> None:
    called: list[str] = []
    timeouts = SharedTimeouts(asyncio.get_running_loop(), 0.05, called.append)
    for key in "abcd":
        timeouts.start(key)
    timeouts.stop("b")
    timeouts.start("a")
    await eventually_async(lambda: len(called) == 3)
    assert called == ["c", "d", "a"]
    assert not len(timeouts)


async def test_all_keys_share_one_timer_and_none_is_left_at_the_end() -> None:
    loop = asyncio.get_running_loop()
    called: list[int] = []
    timeouts = SharedTimeouts(loop, 0.05, called.append)
    before = len(loop._scheduled)  # type: ignore[attr-defined]
    for key in range(1000):
        timeouts.start(key)
    assert len(loop._scheduled) - before == 1  # type: ignore[attr-defined]
    timeouts.close()
    timeouts.start(1000)
    await eventually_async(lambda: called == [1000])
    assert timeouts._timer is None


async def test_a_callback_can_start_its_key_again() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    def start_again(key: str) -> None:
        times.append(loop.time())
        if len(times) < 3:
            timeouts.start(key)

    timeouts: SharedTimeouts[str] = SharedTimeouts(loop, 0.02, start_again)
    timeouts.start("a")
    await eventually_async(lambda: len(times) == 3)
    assert all(later - earlier >= 0.02 for earlier, later in pairwise(times))
