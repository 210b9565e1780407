"""Measuring what only the database knows, now and then, so that nobody who wants to know it asks the database."""

from __future__ import annotations

import asyncio
import logging
import time

from stream_server.errors import Unavailable
from stream_server.journal.run_store import GaugeValues, RunStore

log = logging.getLogger(__name__)

QUEUE_USAGE_WARNING = 0.5
"""Share of PostgreSQL's queue of notifications, if full, that is worth a warning. Where all of it is full, `NOTIFY`
fails the transaction that uses it, whosever that is."""


class DatabaseGauges:
    """What was measured last.

    Args:
        runs: Where to measure.
        interval: Seconds from one measurement to the next.
    """

    def __init__(self, runs: RunStore, interval: float) -> None:
        self._runs = runs
        self._interval = interval
        self.values: GaugeValues | None = None
        self.read_at: float | None = None
        """When it was measured, in seconds since 1970."""

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            try:
                self.values, self.read_at = await self._runs.read_gauges(), time.time()
            except Unavailable as error:
                # The tail has said so already, or will.
                log.debug("The journal was not measured: %s", error)
            for warning in self.warnings:
                log.warning("%s", warning, extra={"action": "journal_warning"})
            await asyncio.sleep(self._interval)

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at before it becomes a problem, in words."""
        if self.values is None or self.values.notify_queue_usage < QUEUE_USAGE_WARNING:
            return []
        full = f"PostgreSQL's queue of notifications is {self.values.notify_queue_usage:.0%} full"
        return [f"{full}; a session that listens and stays in a transaction holds it up: see pg_stat_activity"]
