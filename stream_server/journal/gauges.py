"""Sizes of the journal and lag of vacuum, read periodically, so that a scrape of the metrics does no query."""

from __future__ import annotations

import asyncio
import logging
import time

from stream_server.errors import Unavailable
from stream_server.journal.run_store import GaugeValues, RunStore

log = logging.getLogger(__name__)

QUEUE_USAGE_WARNING = 0.5
"""Used share of PostgreSQL's notification queue from which on a warning is logged. If the queue is full, every
transaction with a `NOTIFY` fails at commit."""


class DatabaseGauges:
    """The values of the last successful read.

    Args:
        run_store: Reads the values.
        interval: Seconds between two reads.
    """

    def __init__(self, run_store: RunStore, interval: float) -> None:
        self._run_store = run_store
        self._interval = interval
        self.values: GaugeValues | None = None
        self.read_at: float | None = None
        """Unix time of the read."""

    async def run(self) -> None:
        """Read the values every `interval` seconds until cancelled."""
        while True:
            try:
                self.values, self.read_at = await self._run_store.read_gauges(), time.time()
            except Unavailable as error:
                # The tail logs the same error as a warning.
                log.debug("Cannot read the gauges of the journal: %s", error)
            for warning in self.warnings:
                log.warning("%s", warning, extra={"action": "journal_warning"})
            await asyncio.sleep(self._interval)

    @property
    def warnings(self) -> list[str]:
        """Warnings for operators, as sentences; empty if there are none."""
        if self.values is None or self.values.notify_queue_usage < QUEUE_USAGE_WARNING:
            return []
        usage = f"PostgreSQL's notification queue is {self.values.notify_queue_usage:.0%} full"
        return [f"{usage}; a listening session in a long transaction keeps it from being emptied: see pg_stat_activity"]
