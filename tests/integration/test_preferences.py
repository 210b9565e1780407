"""`Prefer` (RFC 7240) in blocking calls."""

from __future__ import annotations

import httpx

from support.airflow_stub_fixtures import WAIT


async def test_the_timeout_can_be_a_preference(caller: httpx.AsyncClient) -> None:
    answer = await caller.post(WAIT, json={}, headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    assert answer.headers["vary"] == "Prefer"
    again = answer.headers["location"]
    answer = await caller.get(again, headers={"Prefer": "respond-async, wait=0"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")
    answer = await caller.get(f"{again}?timeout=0", headers={"Prefer": "wait=600"})
    assert (answer.status_code, answer.headers.get("preference-applied")) == (202, None)
