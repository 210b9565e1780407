"""The metrics of one process. `docs/operations.md` describes each of them, and a test compares both.

Every application has its own registry. No label has a value that a DAG, a run or a caller chooses.
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
from typing_extensions import override

from stream_server import __version__
from stream_server.domain.transition import ReadTiming
from stream_server.http.delivery.scheduler import TransportStatistics
from stream_server.hub.hub import Hub
from stream_server.journal.gauges import DatabaseGauges
from stream_server.journal.status import SCHEMA_UNKNOWN
from stream_server.journal.tail import ReadReason, Tail
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily, collect_registry

PREFIX = "stream_server"

NEW, RESUMED = "new", "resumed"
"""Values of the label `how` of started streams."""

READ_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds of a database query."""

LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
"""Seconds from the writing of a row to its reading: with NOTIFY, with polling, and after an outage."""

RESYNC_REASONS: tuple[ResetReason, ...] = ("journal_changed", "transitions_lost")
"""The reasons of those resets that the tail causes."""


class FrameScheduler(Protocol):
    """What the metrics need of a `WriteScheduler`."""

    def call_when_written(self, call: Callable[[], None]) -> None:
        """Call once everything that is due now has been written; not at all if nothing is due."""

    def statistics(self) -> Mapping[str, TransportStatistics]:
        """Return what was sent, by transport."""


class WorkerPool(Protocol):
    """What the metrics need of a `Relay`."""

    @property
    def serving_count(self) -> int:
        """Number of workers that accept connections."""


class Metrics:
    """The metrics of one process, and the observer of its tail and its hub."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info(f"{PREFIX}_build", "Version of this server.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._read_rows = Counter(f"{PREFIX}_read_rows", "Rows of the journal that were read.", registry=registry)
        self._reads = Counter(f"{PREFIX}_reads", "Reads of the journal, by reason.", ["why"], registry=registry)
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
            f"{PREFIX}_connections_lost",
            "Connections to PostgreSQL that the tail lost or could not make.",
            registry=registry,
        )
        self._resyncs = Counter(
            f"{PREFIX}_begun_anew", "How often all streams were reset, by reason.", ["reason"], registry=registry
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
            "From the writing of a batch's oldest row until it was written to all its clients.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._join_seconds = Histogram(
            f"{PREFIX}_join_duration_seconds",
            "How long it took to start a stream, new or resumed.",
            ["how"],
            buckets=READ_BUCKETS,
            registry=registry,
        )
        self._closes = Counter(
            f"{PREFIX}_closes",
            "Streams whose connection ended before they did, by close code.",
            ["code"],
            registry=registry,
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

    def register_tail(self, tail: Tail, gauges: DatabaseGauges) -> None:
        """Export the status of a tail, and the gauges of its database."""
        self._registry.register(_TailCollector(tail, gauges))

    def register_hub(self, hub: Hub) -> None:
        """Export what is watched."""
        self._registry.register(_HubCollector(hub))

    def register_scheduler(self, scheduler: FrameScheduler) -> None:
        """Export what is sent, and measure the delivery of batches."""
        self._scheduler = scheduler
        self._registry.register(_DeliveryCollector(scheduler))

    def register_workers(self, workers: WorkerPool) -> None:
        """Export how many workers there are, and how many died."""
        self._worker_losses = Counter(
            f"{PREFIX}_workers_lost", "Workers that died and were replaced.", registry=self._registry
        )
        serving = Gauge(f"{PREFIX}_workers", "Workers that serve.", registry=self._registry)
        serving.set_function(lambda: workers.serving_count)

    def collect(self) -> list[MetricFamily]:
        return collect_registry(self._registry)

    def record_read(self, why: ReadReason, rows: int, seconds: float) -> None:
        self._reads.labels(why).inc()
        self._read_rows.inc(rows)
        self._read_seconds.observe(seconds)

    def record_lag(self, seconds: float) -> None:
        # The clock of PostgreSQL's machine may be set back between writing and reading.
        self._lag_seconds.observe(max(0.0, seconds))

    def record_connection_loss(self) -> None:
        self._connection_losses.inc()

    def record_resync(self, reason: ResetReason) -> None:
        self._resyncs.labels(reason).inc()

    def record_skipped_rows(self, rows: int) -> None:
        self._rows_skipped.inc(rows)

    def record_failed_message(self) -> None:
        self._messages_failed.inc()

    def record_worker_loss(self) -> None:
        self._worker_losses.inc()

    def record_dispatch(self, read: ReadTiming) -> None:
        # The clients have it when the scheduler has written what the hub has queued now.
        if self._scheduler is not None:
            self._scheduler.call_when_written(partial(self._record_delivery, read))

    def record_join(self, seconds: float, *, resumed: bool) -> None:
        self._join_seconds.labels(RESUMED if resumed else NEW).observe(seconds)

    def record_close(self, code: CloseCode) -> None:
        self._closes.labels(code.name.lower()).inc()

    def record_pruned_rows(self, rows: int) -> None:
        self._pruned_rows.inc(rows)

    def _record_delivery(self, read: ReadTiming) -> None:
        self._delivery_seconds.observe(max(0.0, read.lag) + time.monotonic() - read.at)


class _DeliveryCollector(Collector):
    def __init__(self, scheduler: FrameScheduler) -> None:
        self._scheduler = scheduler

    @override
    def collect(self) -> Iterator[Metric]:
        label = ["transport"]
        connections = GaugeMetricFamily(f"{PREFIX}_connections", "Connections, by transport.", labels=label)
        unsent = GaugeMetricFamily(f"{PREFIX}_unsent_bytes", "Bytes in the write buffers of connections.", labels=label)
        frames = CounterMetricFamily(f"{PREFIX}_sent_frames", "Frames that were sent.", labels=label)
        size = CounterMetricFamily(f"{PREFIX}_sent_bytes", "Bytes of frames that were sent.", labels=label)
        for transport, sent in self._scheduler.statistics().items():
            connections.add_metric([transport], sent.connections)
            unsent.add_metric([transport], sent.unsent)
            frames.add_metric([transport], sent.frames)
            size.add_metric([transport], sent.bytes)
        return iter((connections, unsent, frames, size))


class _HubCollector(Collector):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @override
    def collect(self) -> Iterator[Metric]:
        statistics = self._hub.statistics()
        yield _gauge("watched_runs", "Runs that are watched.", statistics.runs)
        yield _gauge("open_streams", "Streams that are open.", statistics.subscriptions)
        yield _gauge("queued_frames", "Frames queued for slow clients.", statistics.queued_frames)
        yield _gauge("queued_bytes", "Bytes of JSON queued for slow clients.", statistics.queued_bytes)


class _TailCollector(Collector):
    """Status of the tail now, and the gauges of the database as they were read last: a scrape queries no database."""

    def __init__(self, tail: Tail, gauges: DatabaseGauges) -> None:
        self._tail = tail
        self._gauges = gauges

    @override
    def collect(self) -> Iterator[Metric]:
        status = self._tail.status
        yield _gauge("tail_connected", "Whether the tail follows the journal.", status.is_connected)
        yield _gauge(
            "doorbell_heard",
            "Whether the tail receives notifications; otherwise it polls.",
            status.receives_notifications,
        )
        yield _gauge("problems", "Reasons why streams are incomplete or late; /ready lists them.", len(status.problems))
        yield _gauge(
            "schema_unknown",
            "Whether the triggers do nothing, because they met tables of Airflow that they can't read.",
            SCHEMA_UNKNOWN in status.problems,
        )
        if self._gauges.values is None or self._gauges.read_at is None:
            return
        values = self._gauges.values
        rows = GaugeMetricFamily(f"{PREFIX}_journal_rows", "Rows of the journal, estimated.", labels=["state"])
        rows.add_metric(["live"], values.live_rows)
        rows.add_metric(["dead"], values.dead_rows)
        yield rows
        size = GaugeMetricFamily(f"{PREFIX}_journal_bytes", "Size of the journal's files.", labels=["part"])
        size.add_metric(["table"], values.table_bytes)
        size.add_metric(["index"], values.index_bytes)
        yield size
        yield CounterMetricFamily(
            f"{PREFIX}_losses", "How often a trigger could not write its row.", values.dropped_writes
        )
        yield _gauge(
            "notify_queue_usage_ratio",
            "Used share of PostgreSQL's notification queue.",
            values.notify_queue_usage,
        )
        yield _gauge("measured_timestamp_seconds", "When the database was measured last.", self._gauges.read_at)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value)
