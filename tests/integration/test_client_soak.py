"""Clients of all kinds connect and disconnect while servers fail; `make check-clients` runs more, for longer."""

from __future__ import annotations

from support.client_soak import FAULTS
from support.make_targets import run_to_its_end

MINUTES, CLIENTS, ROUNDS = 0.2, 150, 1


def test_nothing_is_lost_duplicated_or_leaked() -> None:
    figures = run_to_its_end("check-clients", f"MINUTES={MINUTES}", f"ARGS=--clients {CLIENTS}")
    assert all(figures["faults"][fault] >= ROUNDS for fault in FAULTS), figures
