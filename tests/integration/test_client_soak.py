"""Clients of all kinds connect and disconnect for a while; `make check-clients` runs more of them, for longer."""

from __future__ import annotations

from support.client_soak import soak_clients
from support.skipping import IN_CI

SECONDS, CLIENTS = (120.0, 1000) if IN_CI else (15.0, 150)
"""Longer in CI."""


async def test_nothing_is_lost_duplicated_or_leaked(journal: str) -> None:
    verdict = await soak_clients(journal, SECONDS, CLIENTS)
    assert verdict["misses"] == [], verdict
