"""Limits beyond which a check reports a problem or a warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Times are in seconds."""

    check_timeout: float = 10.0
    """Longest duration of one check."""

    retention: float = 24 * 3600.0
    """Age at which the server deletes rows of the journal; 0 means never."""

    max_lag: float = 60.0
    """Longest time between Airflow's newest change and the newest row of the journal. They use different clocks."""

    max_transaction_age: float = 600.0
    """Longest age of a transaction."""

    max_idle_transaction_age: float = 60.0
    """Longest time that a transaction may be idle. A transaction of stream_server is never idle for long."""

    max_transactions_held: int = 1_000_000
    """Most transactions whose dead rows vacuum cannot remove."""

    max_clock_difference: float = 2.0
    """Largest difference between the clocks of this host and of PostgreSQL."""

    max_notify_delay: float = 0.25
    """Longest delay of a notification."""

    max_queue_usage: float = 0.1
    """Largest used share of PostgreSQL's notification queue."""

    max_connection_usage: float = 0.8
    """Largest used share of PostgreSQL's connections."""

    max_dead_rows: int = 100_000
    """Most dead rows of the journal, if they outnumber its live rows."""
