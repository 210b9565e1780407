"""From where on something is worth telling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Times are seconds."""

    check_timeout: float = 10.0
    """One check takes no longer."""

    retention: float = 24 * 3600.0
    """Age at which a server deletes rows of the journal; 0: never."""

    max_lag: float = 60.0
    """The journal may be behind Airflow's newest change. Their times are of different clocks."""

    max_transaction_age: float = 600.0
    """A transaction may be open."""

    max_idle_transaction_age: float = 60.0
    """A transaction may be open with nothing going on in it; PostgreSQL's own sessions that we hold never for long."""

    max_transactions_held: int = 1_000_000
    """Transactions whose dead rows may be kept from vacuum."""

    max_clock_difference: float = 2.0
    """The clocks of this host and of PostgreSQL may differ."""

    max_notify_delay: float = 0.25
    """A doorbell may take to be heard."""

    max_queue_usage: float = 0.1
    """Share of PostgreSQL's queue of notifications that may be full."""

    max_connection_usage: float = 0.8
    """Share of PostgreSQL's connections that may be taken."""

    max_dead_rows: int = 100_000
    """Dead rows that the journal may have, where they are more than the living."""
