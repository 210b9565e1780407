"""What one process of a host does for all: it follows the journal, measures it, and deletes what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from stream_server.journal.gauges import Meter
from stream_server.journal.retention import Retention, prune_forever
from stream_server.journal.run_store import Runs
from stream_server.journal.tail import Audience, Tail, TailStatus
from stream_server.server.metric_families import Family
from stream_server.server.metrics import Metrics
from stream_server.settings import Settings


class Upstream(Protocol):
    """Where an application hears of the journal: `Duties` of its own, or those of the process that has started it."""

    @property
    def status(self) -> TailStatus:
        """How the tail is doing."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at before it becomes a problem."""

    async def run(self) -> None:
        """Hand on what happens, until cancelled."""

    async def families(self) -> list[Family]:
        """Return the metrics of all processes that serve together."""


class Duties:
    """The duties of one process.

    Args:
        settings: The settings.
        audience: Whom the tail tells.
        runs: Where to measure and to delete.
        metrics: Counts what happens.
    """

    def __init__(self, settings: Settings, audience: Audience, runs: Runs, metrics: Metrics) -> None:
        self.tail = Tail(
            settings.database_url.get_secret_value(),
            audience,
            poll_interval=settings.poll_interval,
            check_interval=settings.check_interval,
            observer=metrics,
        )
        self._meter = Meter(runs, settings.check_interval)
        self._retention = Retention(settings.retention or None, settings.retention_size or None)
        self._runs = runs
        self._metrics = metrics
        metrics.attend_tail(self.tail, self._meter)

    @property
    def status(self) -> TailStatus:
        """How the tail is doing."""
        return self.tail.status

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at before it becomes a problem."""
        return self._meter.warnings

    async def run(self) -> None:
        """Do all of it until cancelled. An error of one part ends the others."""
        parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"tail": self.tail.run, "meter": self._meter.run}
        if self._retention.bounded:
            parts["pruner"] = self._prune
        tasks = [asyncio.create_task(part(), name=name) for name, part in parts.items()]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            dead = done.pop()
            raise RuntimeError(f"The {dead.get_name()} has died") from dead.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def families(self) -> list[Family]:
        """Return the metrics of this process."""
        return self._metrics.families()

    async def _prune(self) -> None:
        await prune_forever(self._runs, self._retention, self._metrics.pruned)
