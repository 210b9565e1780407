"""Clients of all kinds connect and disconnect while servers fail; `make check-clients` runs more, for longer."""

from __future__ import annotations

from support.client_soak import FAULTS, soak_clients

SECONDS, CLIENTS, ROUNDS = 12.0, 150, 1


async def test_nothing_is_lost_duplicated_or_leaked(journal: str) -> None:
    verdict = await soak_clients(journal, SECONDS, CLIENTS, ROUNDS)
    assert verdict["misses"] == [], verdict
    assert all(verdict["faults"][fault] >= ROUNDS for fault in FAULTS), verdict
