"""From where on something is worth telling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times are seconds."""

    check: float = 10.0
    """One check takes no longer."""

    retention: float = 24 * 3600.0
    """Age at which a server deletes rows of the journal; 0: never."""

    lag: float = 60.0
    """The journal may be behind Airflow's newest change. Their times are of different clocks."""

    transaction: float = 600.0
    """A transaction may be open."""

    idle_transaction: float = 60.0
    """A transaction may be open with nothing going on in it; PostgreSQL's own sessions that we hold never for long."""

    transactions_held: int = 1_000_000
    """Transactions whose dead rows may be kept from vacuum."""

    clock: float = 2.0
    """The clocks of this host and of PostgreSQL may differ."""

    round_trip: float = 0.25
    """A doorbell may take to be heard."""

    queue: float = 0.1
    """Share of PostgreSQL's queue of notifications that may be full."""

    connections: float = 0.8
    """Share of PostgreSQL's connections that may be taken."""

    dead_rows: int = 100_000
    """Dead rows that the journal may have, where they are more than the living."""
