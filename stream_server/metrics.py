"""What an operator sees, in Prometheus' text format; `docs/operations.md` describes each metric, and a test sees to it.

Every application has metrics of its own. No label has a value that a DAG, a run or a caller chooses.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from stream_server import __version__
from stream_server.frames import ResetReason
from stream_server.hub import Hub
from stream_server.meter import Meter
from stream_server.tail import Tail, Why

PREFIX = "stream_server"

READ_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds that a read takes."""

LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
"""Seconds from the writing of a row to its reading: from the doorbell's speed over the poll interval to an outage."""

BEGINNINGS: tuple[ResetReason, ...] = ("journal_changed", "transitions_lost")
"""Reasons for which a tail has all watchers begin anew."""


class Metrics:
    """Counts what happens; it is the `tail.Observer`."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info(f"{PREFIX}_build", "Version of this server.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._rows = Counter(f"{PREFIX}_read_rows", "Rows of the journal that were read.", registry=registry)
        self._reads = Counter(f"{PREFIX}_reads", "Reads of the journal, by why.", ["why"], registry=registry)
        self._read_seconds = Histogram(
            f"{PREFIX}_read_duration_seconds", "How long reads took.", buckets=READ_BUCKETS, registry=registry
        )
        self._lag = Histogram(
            f"{PREFIX}_lag_seconds",
            "From the writing of a row to its reading, by PostgreSQL's clock.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._lost = Counter(
            f"{PREFIX}_connections_lost", "Connections to PostgreSQL lost, or not made, by the tail.", registry=registry
        )
        self._begun_anew = Counter(
            f"{PREFIX}_begun_anew", "How often all streams began anew, by reason.", ["reason"], registry=registry
        )
        self._pruned = Counter(f"{PREFIX}_pruned_rows", "Rows that this server deleted.", registry=registry)
        for why in get_args(Why):
            self._reads.labels(why)
        for reason in BEGINNINGS:
            self._begun_anew.labels(reason)

    def attend(self, hub: Hub, tail: Tail, meter: Meter) -> None:
        """Tell from now on what these know."""
        self._registry.register(_Present(hub, tail, meter))

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in a format that a client accepts (its header `Accept`), and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def read(self, why: Why, rows: int, seconds: float) -> None:
        """Count a read."""
        self._reads.labels(why).inc()
        self._rows.inc(rows)
        self._read_seconds.observe(seconds)

    def lag(self, seconds: float) -> None:
        """Count a row."""
        # The clock of PostgreSQL's machine may be set back between the two.
        self._lag.observe(max(0.0, seconds))

    def lost(self) -> None:
        """Count a connection."""
        self._lost.inc()

    def began_anew(self, reason: ResetReason) -> None:
        """Count a new beginning."""
        self._begun_anew.labels(reason).inc()

    def pruned(self, rows: int) -> None:
        """Count rows that were deleted."""
        self._pruned.inc(rows)


class _Present(Collector):
    """What is so at the moment of a scrape, or was when the database was measured last."""

    def __init__(self, hub: Hub, tail: Tail, meter: Meter) -> None:
        self._hub = hub
        self._tail = tail
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """Look."""
        status, statistics = self._tail.status, self._hub.statistics()
        yield _gauge("tail_connected", "Whether the tail follows the journal.", status.connected)
        yield _gauge("doorbell_heard", "Whether the doorbell is heard; otherwise the tail polls.", status.hears)
        yield _gauge("problems", "Reasons why streams are incomplete or late; /ready has them.", len(status.problems))
        yield _gauge("watched_runs", "Runs that are watched.", statistics.runs)
        yield _gauge("open_streams", "Streams that are open.", statistics.subscriptions)
        yield _gauge("queued_frames", "Frames that wait for slow clients.", statistics.queued_frames)
        yield _gauge("queued_bytes", "Bytes of JSON that wait for slow clients.", statistics.queued_bytes)
        if self._meter.measures is None or self._meter.at is None:
            return
        measures = self._meter.measures
        rows = GaugeMetricFamily(f"{PREFIX}_journal_rows", "Rows of the journal, estimated.", labels=["state"])
        rows.add_metric(["live"], measures.live_rows)
        rows.add_metric(["dead"], measures.dead_rows)
        yield rows
        size = GaugeMetricFamily(f"{PREFIX}_journal_bytes", "Size of the journal's files.", labels=["part"])
        size.add_metric(["table"], measures.table_bytes)
        size.add_metric(["index"], measures.index_bytes)
        yield size
        yield CounterMetricFamily(
            f"{PREFIX}_losses", "How often the triggers could not write something down.", measures.losses
        )
        yield _gauge(
            "notify_queue_usage_ratio", "Share of PostgreSQL's queue of notifications in use.", measures.queue_usage
        )
        yield _gauge("measured_timestamp_seconds", "When the database was measured last.", self._meter.at)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value)
