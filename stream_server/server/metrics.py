"""What an operator sees, in Prometheus' text format; `docs/operations.md` describes each metric, and a test sees to it.

Every application has metrics of its own. No label has a value that a DAG, a run or a caller chooses.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_server import __version__
from stream_server.domain.transition import ReadTiming
from stream_server.http.delivery.scheduler import TransportStatistics
from stream_server.hub.hub import Hub
from stream_server.journal.gauges import DatabaseGauges
from stream_server.journal.tail import ReadReason, Tail
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily, collect_registry

PREFIX = "stream_server"

NEW, RESUMED = "new", "resumed"
"""How a stream begins."""

READ_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds that a read takes."""

LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
"""Seconds from the writing of a row to its reading: from the doorbell's speed over the poll interval to an outage."""

RESYNC_REASONS: tuple[ResetReason, ...] = ("journal_changed", "transitions_lost")
"""Reasons for which a tail has all watchers begin anew."""


class FrameScheduler(Protocol):
    """Who brings frames to their clients: `transports.courier.Courier`."""

    def call_when_written(self, call: Callable[[], None]) -> None:
        """Have something called when all that is due now has been written; not at all, where nothing is."""

    def statistics(self) -> Mapping[str, TransportStatistics]:
        """Tell what was sent, by transport."""


class WorkerPool(Protocol):
    """Who knows how many processes serve: `stream_server.server.workers`."""

    @property
    def serving_count(self) -> int:
        """How many there are."""


class Metrics:
    """Counts what happens; it is the `Observer` of tail and hub."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info(f"{PREFIX}_build", "Version of this server.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._read_rows = Counter(f"{PREFIX}_read_rows", "Rows of the journal that were read.", registry=registry)
        self._reads = Counter(f"{PREFIX}_reads", "Reads of the journal, by why.", ["why"], registry=registry)
        self._read_seconds = Histogram(
            f"{PREFIX}_read_duration_seconds", "How long reads took.", buckets=READ_BUCKETS, registry=registry
        )
        self._lag_seconds = Histogram(
            f"{PREFIX}_lag_seconds",
            "From the writing of a row to its reading, by PostgreSQL's clock.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._connection_losses = Counter(
            f"{PREFIX}_connections_lost", "Connections to PostgreSQL lost, or not made, by the tail.", registry=registry
        )
        self._resyncs = Counter(
            f"{PREFIX}_begun_anew", "How often all streams began anew, by reason.", ["reason"], registry=registry
        )
        self._rows_skipped = Counter(
            f"{PREFIX}_journal_rows_skipped", "Rows of the journal that could not be decoded.", registry=registry
        )
        self._messages_failed = Counter(
            f"{PREFIX}_messages_failed",
            "Messages between processes that could not be decoded or handled.",
            registry=registry,
        )
        self._delivery_seconds = Histogram(
            f"{PREFIX}_delivery_seconds",
            "From the writing of a batch's oldest row to when all its clients had been written to.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._join_seconds = Histogram(
            f"{PREFIX}_join_duration_seconds",
            "How long it took to begin a stream, new or resumed.",
            ["how"],
            buckets=READ_BUCKETS,
            registry=registry,
        )
        self._closes = Counter(
            f"{PREFIX}_closes", "Streams whose connection ended before they did, by why.", ["code"], registry=registry
        )
        self._scheduler: FrameScheduler | None = None
        self._pruned_rows = Counter(f"{PREFIX}_pruned_rows", "Rows that this server deleted.", registry=registry)
        for why in get_args(ReadReason):
            self._reads.labels(why)
        for reason in RESYNC_REASONS:
            self._resyncs.labels(reason)
        for code in CloseCode:
            self._closes.labels(code.name.lower())
        for how in (NEW, RESUMED):
            self._join_seconds.labels(how)

    def register_tail(self, tail: Tail, meter: DatabaseGauges) -> None:
        """Tell from now on how the tail is doing, and what was measured."""
        self._registry.register(_TailCollector(tail, meter))

    def register_hub(self, hub: Hub) -> None:
        """Tell from now on what is watched."""
        self._registry.register(_HubCollector(hub))

    def register_scheduler(self, sending: FrameScheduler) -> None:
        """Tell from now on what is sent."""
        self._scheduler = sending
        self._registry.register(_DeliveryCollector(sending))

    def register_workers(self, workers: WorkerPool) -> None:
        """Tell from now on how many workers there are, and how many have died."""
        self._worker_losses = Counter(
            f"{PREFIX}_workers_lost", "Workers that died, and were replaced.", registry=self._registry
        )
        serving = Gauge(f"{PREFIX}_workers", "Workers that serve.", registry=self._registry)
        serving.set_function(lambda: workers.serving_count)

    def collect(self) -> list[MetricFamily]:
        """Return all metrics of this process."""
        return collect_registry(self._registry)

    def record_read(self, why: ReadReason, rows: int, seconds: float) -> None:
        """Count a read."""
        self._reads.labels(why).inc()
        self._read_rows.inc(rows)
        self._read_seconds.observe(seconds)

    def record_lag(self, seconds: float) -> None:
        """Count a row."""
        # The clock of PostgreSQL's machine may be set back between the two.
        self._lag_seconds.observe(max(0.0, seconds))

    def record_connection_loss(self) -> None:
        """Count a connection."""
        self._connection_losses.inc()

    def record_resync(self, reason: ResetReason) -> None:
        """Count a new beginning."""
        self._resyncs.labels(reason).inc()

    def record_skipped_rows(self, rows: int) -> None:
        """Count rows that could not be decoded."""
        self._rows_skipped.inc(rows)

    def record_failed_message(self) -> None:
        """Count a message of another process that could not be decoded or handled."""
        self._messages_failed.inc()

    def record_worker_loss(self) -> None:
        """Count a worker that died."""
        self._worker_losses.inc()

    def record_dispatch(self, read: ReadTiming) -> None:
        """Measure how long a batch takes to its clients, once it has been written to all of them."""
        if self._scheduler is not None:
            self._scheduler.call_when_written(partial(self._record_delivery, read))

    def record_join(self, seconds: float, *, resumed: bool) -> None:
        """Count a stream that began."""
        self._join_seconds.labels(RESUMED if resumed else NEW).observe(seconds)

    def record_close(self, code: CloseCode) -> None:
        """Count a connection that ended before its stream."""
        self._closes.labels(code.name.lower()).inc()

    def record_pruned_rows(self, rows: int) -> None:
        """Count rows that were deleted."""
        self._pruned_rows.inc(rows)

    def _record_delivery(self, read: ReadTiming) -> None:
        self._delivery_seconds.observe(max(0.0, read.lag) + time.monotonic() - read.at)


class _DeliveryCollector(Collector):
    """What was sent until the moment of a scrape."""

    def __init__(self, sending: FrameScheduler) -> None:
        self._scheduler = sending

    def collect(self) -> Iterator[Metric]:
        """Look."""
        label = ["transport"]
        connections = GaugeMetricFamily(f"{PREFIX}_connections", "Connections, by transport.", labels=label)
        unsent = GaugeMetricFamily(f"{PREFIX}_unsent_bytes", "Bytes that wait in connections.", labels=label)
        frames = CounterMetricFamily(f"{PREFIX}_sent_frames", "Frames that were sent.", labels=label)
        size = CounterMetricFamily(f"{PREFIX}_sent_bytes", "Bytes of frames that were sent.", labels=label)
        for transport, sent in self._scheduler.statistics().items():
            connections.add_metric([transport], sent.connections)
            unsent.add_metric([transport], sent.unsent)
            frames.add_metric([transport], sent.frames)
            size.add_metric([transport], sent.bytes)
        return iter((connections, unsent, frames, size))


class _HubCollector(Collector):
    """What is watched at the moment of a scrape."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Look."""
        statistics = self._hub.statistics()
        yield _gauge("watched_runs", "Runs that are watched.", statistics.runs)
        yield _gauge("open_streams", "Streams that are open.", statistics.subscriptions)
        yield _gauge("queued_frames", "Frames that wait for slow clients.", statistics.queued_frames)
        yield _gauge("queued_bytes", "Bytes of JSON that wait for slow clients.", statistics.queued_bytes)


class _TailCollector(Collector):
    """How the tail is doing at the moment of a scrape, and how the database was when it was measured last."""

    def __init__(self, tail: Tail, meter: DatabaseGauges) -> None:
        self._tail = tail
        self._gauges = meter

    def collect(self) -> Iterator[Metric]:
        """Look."""
        status = self._tail.status
        yield _gauge("tail_connected", "Whether the tail follows the journal.", status.is_connected)
        yield _gauge(
            "doorbell_heard", "Whether the doorbell is heard; otherwise the tail polls.", status.receives_notifications
        )
        yield _gauge("problems", "Reasons why streams are incomplete or late; /ready has them.", len(status.problems))
        if self._gauges.values is None or self._gauges.read_at is None:
            return
        measures = self._gauges.values
        rows = GaugeMetricFamily(f"{PREFIX}_journal_rows", "Rows of the journal, estimated.", labels=["state"])
        rows.add_metric(["live"], measures.live_rows)
        rows.add_metric(["dead"], measures.dead_rows)
        yield rows
        size = GaugeMetricFamily(f"{PREFIX}_journal_bytes", "Size of the journal's files.", labels=["part"])
        size.add_metric(["table"], measures.table_bytes)
        size.add_metric(["index"], measures.index_bytes)
        yield size
        yield CounterMetricFamily(
            f"{PREFIX}_losses", "How often the triggers could not write something down.", measures.dropped_writes
        )
        yield _gauge(
            "notify_queue_usage_ratio",
            "Share of PostgreSQL's queue of notifications in use.",
            measures.notify_queue_usage,
        )
        yield _gauge("measured_timestamp_seconds", "When the database was measured last.", self._gauges.read_at)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value)
