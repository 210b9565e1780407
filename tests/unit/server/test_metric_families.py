"""Metrics summed over several processes."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.parser import text_string_to_metric_families

from stream_server.server.metric_families import MetricFamily, collect_registry, encode_families, sum_families


def collect_process(started_at: float, calls: int) -> list[MetricFamily]:
    """Return the metrics of one process, encoded and decoded as between processes."""
    registry = CollectorRegistry()
    Info("build", "Version.", registry=registry).info({"version": "1"})
    Gauge("process_start_time_seconds", "Start time.", registry=registry).set(started_at)
    Gauge("open", "Open streams.", registry=registry).set(calls)
    counter = Counter("calls", "Calls.", ["why"], registry=registry)
    counter.labels("ring").inc(calls)
    if calls > 1:
        counter.labels("poll").inc()
    seconds = Histogram("seconds", "Duration.", buckets=(1.0, 2.0), registry=registry)
    for _ in range(calls):
        seconds.observe(1.5)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(collect_registry(registry)), type=list[MetricFamily])


def values(families: list[MetricFamily], accept: str = "") -> dict[str, float]:
    text = encode_families(families, accept)[0].decode()
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_samples_are_summed_by_label() -> None:
    found = values(sum_families([collect_process(10.0, 1), collect_process(20.0, 3)]))
    assert found["open[]"] == 4
    assert (found["calls_total['ring']"], found["calls_total['poll']"]) == (4, 1)
    assert [found[f"seconds_bucket['{bound}']"] for bound in ("1.0", "2.0", "+Inf")] == [0, 4, 4]
    assert (found["seconds_count[]"], found["seconds_sum[]"]) == (4, 6)


def test_metrics_that_cannot_be_summed_are_the_minimum() -> None:
    one, other = collect_process(10.0, 1), collect_process(20.0, 1)
    found = values(sum_families([other, one]))
    assert found["process_start_time_seconds[]"] == 10.0
    assert found["build_info['1']"] == 1
    created = min(values(each)["calls_created['ring']"] for each in (one, other))
    assert found["calls_created['ring']"] == created


def test_counters_and_histograms_are_cumulative() -> None:
    assert {family.name for family in collect_process(1.0, 1) if family.is_cumulative} == {"calls", "seconds"}


def test_openmetrics_is_encoded() -> None:
    body, media_type = encode_families(collect_process(1.0, 1), "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "version", ["", "x", "1.x", "\u00b9", "1_0.0.0", '"1.0.0"', "9" * 5000, "-1.0.0", "nan", "1.0.0.0.0"]
)
@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_invalid_version_is_not_accepted(media_type: str, version: str) -> None:
    families, media_range = collect_process(1.0, 1), f"{media_type};q=0.9; version={version}"
    assert encode_families(families, media_range) == encode_families(families)
    assert encode_families(families, f"{media_range}, application/openmetrics-text")[0].endswith(b"# EOF\n")
