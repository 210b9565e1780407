"""Whatever is asked, the server answers as it says it does, and has no fault."""

from __future__ import annotations

import asyncio

from support.api_check import check, target

SEED = 7


async def test_every_answer_is_described_and_none_is_a_fault(journal: str) -> None:
    async with target(journal) as url:
        checked = await asyncio.to_thread(check, url, 8, SEED)
    assert checked.misses == []
    assert {"200", "201", "404", "422"} <= checked.statuses.keys()
    assert sum(checked.statuses.values()) > 100
