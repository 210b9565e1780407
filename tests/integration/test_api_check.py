"""Responses to generated requests are as documented, and none is a server error."""

from __future__ import annotations

import asyncio

from support.api_check import check, serve_target

SEED = 7


async def test_every_response_is_documented_and_none_is_a_server_error(journal: str) -> None:
    async with serve_target(journal) as url:
        checked = await asyncio.to_thread(check, url, 8, SEED)
    assert checked.misses == []
    assert {"200", "201", "404", "422"} <= checked.statuses.keys()
    assert sum(checked.statuses.values()) > 100
