"""What one process of a host does for all of them: it follows the journal, prunes it, and measures the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias

from typing_extensions import override

from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.hub import Hub
from stream_server.journal.gauges import DatabaseGauges
from stream_server.journal.retention import Retention, prune_forever
from stream_server.journal.run_store import RunStore
from stream_server.journal.tail import BatchSink, Tail, TailStatus
from stream_server.server.metric_families import MetricFamily
from stream_server.server.metrics import Metrics
from stream_server.settings import Settings
from stream_server.urls import DatabaseUrl

log = logging.getLogger(__name__)


class JournalSource(Protocol):
    """Where the batches of an application's hub come from: a `JournalService` of its own, or a `RelayClient`."""

    @property
    def status(self) -> TailStatus:
        """Status of the tail."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should act on before it becomes a problem."""

    async def run(self) -> None:
        """Pass batches to the hub until cancelled."""

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return the metrics of all processes that serve together."""


MakeJournalSource: TypeAlias = Callable[[Settings, Hub, RunStore, Metrics], JournalSource]


class JournalService(JournalSource):
    """The journal, followed by this process.

    Args:
        settings: Those of the server.
        sink: Gets the batches.
        run_store: Where the database is measured and the journal pruned.
        metrics: Those of this process.
    """

    def __init__(self, settings: Settings, sink: BatchSink, run_store: RunStore, metrics: Metrics) -> None:
        url = settings.database_address
        if unsupported := DatabaseUrl.parse(url).unsupported:
            log.warning(
                "These options of the database URL are ignored: %s",
                ", ".join(unsupported),
                extra={"action": "database_options_ignored"},
            )
        self.tail = Tail(
            url,
            sink,
            poll_interval=settings.poll_interval,
            check_interval=settings.check_interval,
            observer=metrics,
        )
        self._gauges = DatabaseGauges(run_store, settings.check_interval)
        self._retention = Retention(settings.retention or None, settings.retention_size or None)
        self._run_store = run_store
        self._metrics = metrics
        metrics.register_tail(self.tail, self._gauges)

    @property
    @override
    def status(self) -> TailStatus:
        return self.tail.status

    @property
    @override
    def warnings(self) -> list[str]:
        return [*self.tail.status.warnings, *self._gauges.warnings]

    @override
    async def run(self) -> None:
        """Follow, measure and prune until cancelled.

        Raises:
            RuntimeError: One of the three has ended; its exception is the cause. The others are cancelled.
        """
        tasks = TaskSet("journal service:")
        tasks.start(self.tail.run(), "tail")
        tasks.start(self._gauges.run(), "gauges")
        if self._retention.is_bounded:
            tasks.start(self._prune(), "retention")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = done.pop()
            raise RuntimeError(f"The {ended.get_name()} has ended") from ended.exception()
        finally:
            await tasks.aclose()

    @override
    async def collect_metrics(self) -> list[MetricFamily]:
        return self._metrics.collect()

    async def _prune(self) -> None:
        await prune_forever(self._run_store, self._retention, self._metrics.record_pruned_rows)
