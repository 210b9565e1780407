"""When output is pushed, on a simulated clock: compared with pushes at a fixed interval."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import NamedTuple, Protocol

import pytest

from stream_server.authoring.push_pacing import PUSH_INTERVAL_SECONDS, PushPacing

ITEMS = 1000


class Pacing(Protocol):
    def record_item(self, now: float) -> None: ...
    def record_push(self, began: float, ended: float) -> None: ...
    def next_push_at(self) -> float: ...


class FixedInterval:
    def __init__(self) -> None:
        self._pushed_at = float("-inf")

    def record_item(self, now: float) -> None:
        """Without regard to the items."""

    def record_push(self, began: float, ended: float) -> None:
        self._pushed_at = ended

    def next_push_at(self) -> float:
        return self._pushed_at + PUSH_INTERVAL_SECONDS

    def is_due(self, now: float) -> bool:
        return now >= self.next_push_at()


class Simulated(NamedTuple):
    pushes: int
    median: float
    """Of the seconds from an item to the end of its push."""

    longest: float


def simulate(pacing: Pacing, items: list[float], push_seconds: float) -> Simulated:
    """Push items as `OutputBuffer` does."""
    coming, queue, took, now, pushes = items[::-1], list[float](), list[float](), 0.0, 0

    def take_items(until: float) -> None:
        while coming and coming[-1] <= until:
            queue.append(coming.pop())
            pacing.record_item(queue[-1])

    while coming or queue:
        if not queue:
            now = max(now, coming[-1])
        take_items(now)
        if pacing.next_push_at() > now:
            now = min(pacing.next_push_at(), coming[-1] if coming else float("inf"))
            continue
        end, pushes = now + push_seconds, pushes + 1
        took += [end - item for item in queue]
        queue.clear()
        take_items(end)
        pacing.record_push(now, end)
        now = end
    return Simulated(pushes, statistics.median(took), max(took))


def simulate_without_thread(pacing: PushPacing | FixedInterval, gap: float, push_seconds: float) -> int:
    """Return how many pushes a task causes that pushes itself, and emits an item each `gap` seconds after the last."""
    now, pushes = 0.0, 0
    for _ in range(ITEMS):
        now += gap
        pacing.record_item(now)
        if pacing.is_due(now):
            pacing.record_push(now, now + push_seconds)
            now, pushes = now + push_seconds, pushes + 1
    return pushes


def regular(per_second: float, chance: random.Random) -> list[float]:
    return sorted(number / per_second + chance.uniform(0, 0.001) for number in range(ITEMS))


def irregular(per_second: float, chance: random.Random) -> list[float]:
    return [*itertools.accumulate(chance.expovariate(per_second) for _ in range(ITEMS))]


@pytest.mark.parametrize("push_seconds", [0.013, 0.03, 0.09])
@pytest.mark.parametrize("per_second", [10, 20, 50, 100, 1000])
def test_regular_items_wait_less_in_as_many_pushes(per_second: float, push_seconds: float) -> None:
    items = regular(per_second, random.Random(1))
    fixed, paced = (simulate(pacing, items, push_seconds) for pacing in (FixedInterval(), PushPacing()))
    assert paced.pushes <= fixed.pushes * 1.02
    assert paced.median <= fixed.median * 1.1


def test_a_hundred_tokens_a_second_wait_for_half_of_an_interval_less_half_of_a_token() -> None:
    items = regular(100, random.Random(1))
    fixed, paced = (simulate(pacing, items, 0.013) for pacing in (FixedInterval(), PushPacing()))
    assert fixed.median - paced.median > 0.004
    assert paced.longest < fixed.longest + 0.005


@pytest.mark.parametrize("push_seconds", [0.013, 0.03, 0.09])
@pytest.mark.parametrize("per_second", [20, 100, 1000])
def test_irregular_items_are_pushed_at_the_interval(per_second: float, push_seconds: float) -> None:
    items = irregular(per_second, random.Random(1))
    fixed, paced = (simulate(pacing, items, push_seconds) for pacing in (FixedInterval(), PushPacing()))
    assert abs(paced.pushes - fixed.pushes) <= 0.03 * fixed.pushes
    assert paced.median <= fixed.median * 1.05


def test_an_item_does_not_wait_for_one_that_does_not_come() -> None:
    pacing = PushPacing()
    for number in range(100):
        pacing.record_item(number / 100)
    pacing.record_push(0.97, 0.98)
    assert pacing.next_push_at() <= 0.98 + PUSH_INTERVAL_SECONDS
    pacing.record_push(0.89, 0.90)
    assert pacing.next_push_at() <= 0.99, "the last item has just come"


@pytest.mark.parametrize("push_seconds", [0.013, 0.03])
@pytest.mark.parametrize("gap", [0.01, 0.02, 0.03, 0.035])
def test_without_a_thread_items_are_pushed_at_the_interval(gap: float, push_seconds: float) -> None:
    fixed, paced = (
        simulate_without_thread(pacing, gap, push_seconds) for pacing in (FixedInterval(), PushPacing(threaded=False))
    )
    assert paced == fixed
