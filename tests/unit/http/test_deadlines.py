from __future__ import annotations

import asyncio
from itertools import pairwise

from stream_server.http.deadlines import SharedTimeouts
from support.waiting import eventually_async


async def test_who_takes_too_long_is_called_once_in_the_order_of_beginning() -> None:
    late: list[str] = []
    deadlines = SharedTimeouts(asyncio.get_running_loop(), 0.05, late.append)
    for who in "abcd":
        deadlines.start(who)
    deadlines.stop("b")
    deadlines.start("a")
    await eventually_async(lambda: len(late) == 3)
    assert late == ["c", "d", "a"]
    assert not len(deadlines)


async def test_one_timer_serves_all_and_none_remains() -> None:
    loop = asyncio.get_running_loop()
    late: list[int] = []
    deadlines = SharedTimeouts(loop, 0.05, late.append)
    before = len(loop._scheduled)  # type: ignore[attr-defined]
    for who in range(1000):
        deadlines.start(who)
    assert len(loop._scheduled) - before == 1  # type: ignore[attr-defined]
    deadlines.close()
    deadlines.start(1000)
    await eventually_async(lambda: late == [1000])
    assert deadlines._timer is None


async def test_who_is_called_may_begin_again() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    def again(who: str) -> None:
        times.append(loop.time())
        if len(times) < 3:
            deadlines.start(who)

    deadlines: SharedTimeouts[str] = SharedTimeouts(loop, 0.02, again)
    deadlines.start("a")
    await eventually_async(lambda: len(times) == 3)
    assert all(later - earlier >= 0.02 for earlier, later in pairwise(times))
