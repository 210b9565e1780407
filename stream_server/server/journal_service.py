"""What one process of a host does for all: it follows the journal, measures it, and deletes what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from stream_server.hub.task_set import TaskSet
from stream_server.journal.gauges import DatabaseGauges
from stream_server.journal.retention import Retention, prune_forever
from stream_server.journal.run_store import RunStore
from stream_server.journal.tail import BatchSink, Tail, TailStatus
from stream_server.server.metric_families import MetricFamily
from stream_server.server.metrics import Metrics
from stream_server.settings import Settings


class JournalSource(Protocol):
    """Where an application gets the journal from: its own `JournalService`, or the supervisor's process."""

    @property
    def status(self) -> TailStatus:
        """How the tail is doing."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at before it becomes a problem."""

    async def run(self) -> None:
        """Hand on what happens, until cancelled."""

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return the metrics of all processes that serve together."""


class JournalService:
    """The duties of one process.

    Args:
        settings: The settings.
        audience: Whom the tail tells.
        runs: Where to measure and to delete.
        metrics: Counts what happens.
    """

    def __init__(self, settings: Settings, audience: BatchSink, runs: RunStore, metrics: Metrics) -> None:
        self.tail = Tail(
            settings.database_url.get_secret_value(),
            audience,
            poll_interval=settings.poll_interval,
            check_interval=settings.check_interval,
            observer=metrics,
        )
        self._gauges = DatabaseGauges(runs, settings.check_interval)
        self._retention = Retention(settings.retention or None, settings.retention_size or None)
        self._run_store = runs
        self._metrics = metrics
        metrics.register_tail(self.tail, self._gauges)

    @property
    def status(self) -> TailStatus:
        """How the tail is doing."""
        return self.tail.status

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at before it becomes a problem."""
        return self._gauges.warnings

    async def run(self) -> None:
        """Do all of it until cancelled. An error of one part ends the others."""
        parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"tail": self.tail.run, "meter": self._gauges.run}
        if self._retention.is_bounded:
            parts["pruner"] = self._prune
        tasks = TaskSet("journal service:")
        for name, part in parts.items():
            tasks.start(part(), name)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            dead = done.pop()
            raise RuntimeError(f"The {dead.get_name()} has died") from dead.exception()
        finally:
            await tasks.aclose()

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return the metrics of this process."""
        return self._metrics.collect()

    async def _prune(self) -> None:
        await prune_forever(self._run_store, self._retention, self._metrics.record_pruned_rows)
