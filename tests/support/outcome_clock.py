"""The clock of simulated runs, so that a case has the same times on each machine, however busy it is."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

TICK = timedelta(milliseconds=1)
"""How much later it is each time that the time is read."""

PAUSES = (0.0, 0.05, 0.5, 2, 20)
"""Seconds between two transactions. Some rules look at times (`interruption.LONGEST_MARK`)."""

START = datetime(2025, 1, 1, tzinfo=timezone.utc)


class SimulatedClock:
    """Takes the place of Airflow's `utcnow`."""

    def __init__(self) -> None:
        self._now = START

    def __call__(self) -> datetime:
        self._now += TICK
        return self._now

    def restart(self) -> None:
        """Start with the time at which each case starts."""
        self._now = START

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


CLOCK = SimulatedClock()
