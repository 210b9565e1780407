"""Metrics as data: to be sent from process to process, added up, and told in Prometheus' formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

MINIMUM_METRICS = frozenset({"process_max_fds", "process_start_time_seconds"})
"""Of these the least of all processes is told; of all others the sum."""

CUMULATIVE_TYPES = frozenset({"counter", "histogram"})
"""Types of metrics that only grow."""

_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){0,3}")

CREATED_SUFFIX = "_created"
"""How the names end of what tells when a counter began."""


class Sample(NamedTuple):
    """One value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class MetricFamily(msgspec.Struct, frozen=True):
    """One metric, with its values for all labels."""

    name: str
    help_text: str
    metric_type: str
    """Its type, as Prometheus names it."""

    samples: list[Sample]

    @property
    def is_cumulative(self) -> bool:
        """Whether it only grows."""
        return self.metric_type in CUMULATIVE_TYPES


class _Collector(Collector):
    """Families, as the encoders of the library want them."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return them."""
        for family in self._families:
            metric = Metric(family.name, family.help_text, family.metric_type)
            for figure in family.samples:
                metric.add_sample(figure.name, dict(figure.labels), figure.value)
            yield metric


def collect_registry(registry: CollectorRegistry) -> list[MetricFamily]:
    """Return all that a registry knows."""
    return [
        MetricFamily(
            metric.name,
            metric.documentation,
            metric.type,
            [Sample(one.name, tuple(sorted(one.labels.items())), float(one.value)) for one in metric.samples],
        )
        for metric in registry.collect()
    ]


def sum_families(each: Sequence[Iterable[MetricFamily]]) -> list[MetricFamily]:
    """Return the metrics of several processes as those of one."""
    families: dict[str, MetricFamily] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for families_of_one in each for family in families_of_one):
        families.setdefault(family.name, family)
        found = sums.setdefault(family.name, {})
        for name, labels, value in family.samples:
            before = found.get((name, labels))
            found[name, labels] = value if before is None else _combine(family, name, before, value)
    return [
        MetricFamily(
            family.name,
            family.help_text,
            family.metric_type,
            [Sample(*key, value) for key, value in sums[name].items()],
        )
        for name, family in families.items()
    ]


def _combine(family: MetricFamily, name: str, one: float, other: float) -> float:
    if family.metric_type == "info" or name in MINIMUM_METRICS or name.endswith(CREATED_SUFFIX):
        return min(one, other)
    return one + other


def _is_comparable(media_range: str) -> bool:
    """Whether a media range has no version, or one that `choose_encoder` can compare: else it raises a `TypeError`."""
    parameters = (part.strip().partition("=") for part in media_range.split(";"))
    return all(_VERSION.fullmatch(value) for name, _, value in parameters if name == "version")


def encode_families(families: Iterable[MetricFamily], accept: str = "") -> tuple[bytes, str]:
    """Return metrics in a format that a client accepts (its header `Accept`), and its media type."""
    encode, media_type = choose_encoder(",".join(filter(_is_comparable, accept.split(","))))
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return encode(registry), media_type
