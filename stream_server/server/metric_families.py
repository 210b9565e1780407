"""Metrics as data: sent from process to process, summed, and encoded in Prometheus' formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from typing_extensions import override

MINIMUM_METRICS = frozenset({"process_max_fds", "process_start_time_seconds"})
"""Metrics of which the minimum over all processes is exported; all others are summed."""

CUMULATIVE_TYPES = frozenset({"counter", "histogram"})

_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){0,3}")

CREATED_SUFFIX = "_created"
"""Suffix of the sample that holds when a counter was created (OpenMetrics). Its minimum is exported."""


class Sample(NamedTuple):
    name: str
    labels: tuple[tuple[str, str], ...]
    """Name and value, sorted by name."""

    value: float


class MetricFamily(msgspec.Struct, frozen=True):
    """One metric with the samples of all its labels."""

    name: str
    help_text: str
    metric_type: str
    """In Prometheus' terms: "counter", "gauge", …"""

    samples: list[Sample]

    @property
    def is_cumulative(self) -> bool:
        """Whether the value only grows, so that it must be kept when its process ends."""
        return self.metric_type in CUMULATIVE_TYPES


class _Collector(Collector):
    """Families as prometheus_client's encoders accept them."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    @override
    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help_text, family.metric_type)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def collect_registry(registry: CollectorRegistry) -> list[MetricFamily]:
    """Return all metrics of a registry."""
    return [
        MetricFamily(
            metric.name,
            metric.documentation,
            metric.type,
            [
                Sample(sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
                for sample in metric.samples
            ],
        )
        for metric in registry.collect()
    ]


def sum_families(processes: Sequence[Iterable[MetricFamily]]) -> list[MetricFamily]:
    """Return the metrics of several processes as those of one."""
    families: dict[str, MetricFamily] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for process in processes for family in process):
        families.setdefault(family.name, family)
        totals = sums.setdefault(family.name, {})
        for name, labels, value in family.samples:
            total = totals.get((name, labels))
            totals[name, labels] = value if total is None else _combine(family, name, total, value)
    return [
        MetricFamily(
            family.name,
            family.help_text,
            family.metric_type,
            [Sample(*key, value) for key, value in sums[name].items()],
        )
        for name, family in families.items()
    ]


def _combine(family: MetricFamily, sample_name: str, one: float, other: float) -> float:
    if family.metric_type == "info" or sample_name in MINIMUM_METRICS or sample_name.endswith(CREATED_SUFFIX):
        return min(one, other)
    return one + other


def _is_comparable(media_range: str) -> bool:
    """Whether a media range has no version, or one that `choose_encoder` can compare: else it raises a `TypeError`."""
    parameters = (part.strip().partition("=") for part in media_range.split(";"))
    return all(_VERSION.fullmatch(value) for name, _, value in parameters if name == "version")


def choose_media_type(accept: str) -> str:
    """Return the media type of the format that a header `Accept` allows."""
    _, media_type = choose_encoder(",".join(filter(_is_comparable, accept.split(","))))
    return media_type


def encode_families(families: Iterable[MetricFamily], accept: str = "") -> tuple[bytes, str]:
    """Return metrics in a format that the header `Accept` allows, and the media type of that format."""
    encode, media_type = choose_encoder(",".join(filter(_is_comparable, accept.split(","))))
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return encode(registry), media_type
