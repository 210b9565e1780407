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

LEAST = frozenset({"process_max_fds", "process_start_time_seconds"})
"""Of these the least of all processes is told; of all others the sum."""

COUNTING = frozenset({"counter", "histogram"})
"""Types of metrics that only grow."""

_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){0,3}")

BEGAN = "_created"
"""How the names end of what tells when a counter began."""


class Figure(NamedTuple):
    """One value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(msgspec.Struct, frozen=True):
    """One metric, with its values for all labels."""

    name: str
    text: str
    kind: str
    """Its type, as Prometheus names it."""

    figures: list[Figure]

    @property
    def counts(self) -> bool:
        """Whether it only grows."""
        return self.kind in COUNTING


class _Told(Collector):
    """Families, as the encoders of the library want them."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return them."""
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for figure in family.figures:
                metric.add_sample(figure.name, dict(figure.labels), figure.value)
            yield metric


def collected(registry: CollectorRegistry) -> list[Family]:
    """Return all that a registry knows."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [Figure(one.name, tuple(sorted(one.labels.items())), float(one.value)) for one in metric.samples],
        )
        for metric in registry.collect()
    ]


def added_up(each: Sequence[Iterable[Family]]) -> list[Family]:
    """Return the metrics of several processes as those of one."""
    families: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for families_of_one in each for family in families_of_one):
        families.setdefault(family.name, family)
        found = sums.setdefault(family.name, {})
        for name, labels, value in family.figures:
            before = found.get((name, labels))
            found[name, labels] = value if before is None else _both(family, name, before, value)
    return [
        Family(family.name, family.text, family.kind, [Figure(*key, value) for key, value in sums[name].items()])
        for name, family in families.items()
    ]


def _both(family: Family, name: str, one: float, other: float) -> float:
    if family.kind == "info" or name in LEAST or name.endswith(BEGAN):
        return min(one, other)
    return one + other


def _is_comparable(media_range: str) -> bool:
    """Whether a media range has no version, or one that `choose_encoder` can compare: else it raises a `TypeError`."""
    parameters = (part.strip().partition("=") for part in media_range.split(";"))
    return all(_VERSION.fullmatch(value) for name, _, value in parameters if name == "version")


def encoded(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """Return metrics in a format that a client accepts (its header `Accept`), and its media type."""
    encode, media_type = choose_encoder(",".join(filter(_is_comparable, accept.split(","))))
    registry = CollectorRegistry()
    registry.register(_Told(families))
    return encode(registry), media_type
