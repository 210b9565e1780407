from __future__ import annotations

import asyncio

import pytest

from stream_server.journal import undecodable_rows as undecodable
from stream_server.journal.undecodable_rows import MAX_CAUSES, LoggedCauses, ResyncTimer
from support.waiting import eventually_async


def test_causes_are_bounded() -> None:
    causes = LoggedCauses()
    new = [causes.add_if_new(str(number)) for number in [0, *range(MAX_CAUSES + 5)]]
    assert new == [True, False, *[True] * (MAX_CAUSES - 1), *[False] * 5]


async def test_the_first_request_resyncs_at_once_and_the_others_together_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecodable, "RESYNC_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    resyncs: list[float] = []
    timer = ResyncTimer(lambda: resyncs.append(loop.time()))
    for _ in range(100):
        timer.request()
    assert len(resyncs) == 1
    await eventually_async(lambda: len(resyncs) == 2)
    assert resyncs[1] - resyncs[0] >= 0.1
    timer.request()
    await eventually_async(lambda: len(resyncs) == 3)


async def test_a_request_that_waits_can_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecodable, "RESYNC_SECONDS", 0.01)
    resyncs: list[str] = []
    dropped, kept = ResyncTimer(lambda: resyncs.append("dropped")), ResyncTimer(lambda: resyncs.append("kept"))
    for timer in (dropped, kept):
        timer.request()
        timer.request()
    dropped.cancel()
    await eventually_async(lambda: resyncs.count("kept") == 2)
    assert resyncs.count("dropped") == 1
