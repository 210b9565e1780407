"""The exported metrics, without a server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from stream_server.domain.transition import ReadTiming
from stream_server.http.delivery.scheduler import TransportStatistics
from stream_server.hub.observer import HubStatistics
from stream_server.journal.gauges import QUEUE_USAGE_WARNING, DatabaseGauges
from stream_server.journal.run_store import GaugeValues
from stream_server.journal.tail import ReadReason, TailStatus
from stream_server.server.metric_families import encode_families
from stream_server.server.metrics import Metrics

OPERATIONS = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
GAUGE_VALUES = GaugeValues(
    live_rows=5, dead_rows=2, table_bytes=8192, index_bytes=16384, dropped_writes=3, notify_queue_usage=0.25
)


class StatisticsStub:
    """What metrics read from a hub, a tail and a supervisor."""

    status = TailStatus(is_connected=True, receives_notifications=True, problems=[])
    serving_count = 2

    def statistics(self) -> HubStatistics:
        return HubStatistics(runs=1, subscriptions=2, queued_frames=3, queued_bytes=4)


class SchedulerStub:
    """What metrics read from a write scheduler."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_when_written(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def statistics(self) -> dict[str, TransportStatistics]:
        return {"sse": TransportStatistics(connections=2, frames=30, bytes=4000, unsent=50)}


def make_metrics(values: GaugeValues | None = GAUGE_VALUES) -> Metrics:
    metrics, gauges, stub = Metrics(), DatabaseGauges(None, 30.0), StatisticsStub()  # type: ignore[arg-type]
    gauges.values, gauges.read_at = values, None if values is None else 1_000_000.0
    metrics.register_hub(stub)  # type: ignore[arg-type]
    metrics.register_tail(stub, gauges)  # type: ignore[arg-type]
    metrics.register_workers(stub)
    metrics.register_scheduler(SchedulerStub())
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    """Return the families of a scrape, without the start times of counters."""
    body, _ = encode_families(metrics.collect())
    found = {family.name: family for family in text_string_to_metric_families(body.decode())}
    return {name: family for name, family in found.items() if not name.endswith("_created")}


def full_name(family: Metric) -> str:
    """Return the name of a metric in queries."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_documented_metrics_are_the_exported_ones() -> None:
    documented = set(re.findall(r"^\| `(stream_server_\w+)(?:\{[\w, ]+\})?` \|", OPERATIONS, re.MULTILINE))
    exported = {full_name(family) for family in families(make_metrics()).values()}
    assert documented == {name for name in exported if not name.startswith("process_")}


def test_every_label_is_documented() -> None:
    documented = {
        name: set(labels.split(", "))
        for name, labels in re.findall(r"^\| `(stream_server_\w+)\{([\w, ]+)\}` \|", OPERATIONS, re.MULTILINE)
    }
    exported = {
        full_name(family): {name for sample in family.samples for name in sample.labels} - {"le"}
        for family in families(make_metrics()).values()
    }
    assert documented == {name: labels for name, labels in exported.items() if labels}


def test_alerts_use_exported_metrics() -> None:
    alerts = re.findall(r"expr: (.+)", OPERATIONS)
    exported = {sample.name for family in families(make_metrics()).values() for sample in family.samples}
    used = {name for alert in alerts for name in re.findall(r"stream_server_\w+", alert)}
    assert len(alerts) > 3
    assert used <= exported


def test_names_follow_the_conventions_of_prometheus() -> None:
    for name, family in families(make_metrics()).items():
        assert name.startswith(("stream_server_", "process_"))
        assert family.documentation.endswith("."), name
        assert family.type != "unknown", name


def test_gauges_that_were_not_read_are_not_exported() -> None:
    missing = set(families(make_metrics())) - set(families(make_metrics(None)))
    assert missing == {
        "stream_server_journal_rows",
        "stream_server_journal_bytes",
        "stream_server_losses",
        "stream_server_notify_queue_usage_ratio",
        "stream_server_measured_timestamp_seconds",
    }


def test_counters_start_at_zero_with_every_label() -> None:
    found = families(make_metrics())
    assert {sample.labels["why"]: sample.value for sample in found["stream_server_reads"].samples} == dict.fromkeys(
        get_args(ReadReason), 0.0
    )
    assert {sample.labels["reason"] for sample in found["stream_server_begun_anew"].samples} == {
        "journal_changed",
        "transitions_lost",
    }


def test_a_clock_that_was_set_back_causes_no_negative_lag() -> None:
    metrics = make_metrics()
    metrics.record_lag(-5.0)
    values = {sample.name: sample.value for sample in families(metrics)["stream_server_lag_seconds"].samples}
    assert (values["stream_server_lag_seconds_sum"], values["stream_server_lag_seconds_count"]) == (0, 1)


def test_delivery_is_measured_when_frames_have_been_written() -> None:
    metrics, scheduler = Metrics(), SchedulerStub()
    metrics.record_dispatch(ReadTiming(0.25, time.monotonic()))
    metrics.register_scheduler(scheduler)
    metrics.record_dispatch(ReadTiming(0.25, time.monotonic() - 0.5))
    assert delivery_sum(metrics) == (0, 0.0)
    (written,) = scheduler.calls
    written()
    count, seconds = delivery_sum(metrics)
    assert count == 1
    assert 0.75 <= seconds < 10


def delivery_sum(metrics: Metrics) -> tuple[float, float]:
    values = {sample.name: sample.value for sample in families(metrics)["stream_server_delivery_seconds"].samples}
    return values["stream_server_delivery_seconds_count"], values["stream_server_delivery_seconds_sum"]


def test_filling_notification_queue_is_a_warning() -> None:
    gauges = DatabaseGauges(None, 30.0)  # type: ignore[arg-type]
    assert gauges.warnings == []
    gauges.values = GAUGE_VALUES
    assert gauges.warnings == []
    gauges.values = GAUGE_VALUES._replace(notify_queue_usage=QUEUE_USAGE_WARNING)
    assert "50% full" in gauges.warnings[0]
