from __future__ import annotations

from stream_server.protocol.backoff import FULL_JITTER, Backoff

NONE = (1.0, 1.0)


def waits(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_wait() for _ in range(count)]


def test_waits_double_up_to_the_longest() -> None:
    assert waits(Backoff(0.1, 0.5, jitter=NONE), 5) == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_reset_starts_with_the_first_wait() -> None:
    backoff = Backoff(0.1, 0.5, jitter=NONE)
    waits(backoff, 3)
    backoff.reset()
    assert waits(backoff, 2) == [0.1, 0.2]


def test_only_an_attempt_longer_than_the_longest_wait_resets() -> None:
    backoff = Backoff(0.1, 0.5, jitter=NONE)
    waits(backoff, 1)
    backoff.reset_after(0.5)
    assert waits(backoff, 1) == [0.2]
    backoff.reset_after(0.6)
    assert waits(backoff, 1) == [0.1]


def test_waits_are_spread_over_the_jitter() -> None:
    spread = [Backoff(1.0, 5.0).next_wait() for _ in range(500)]
    assert 0.5 <= min(spread) < 0.7
    assert 1.3 < max(spread) <= 1.5
    full = [Backoff(1.0, 5.0, jitter=FULL_JITTER).next_wait() for _ in range(500)]
    assert 0.0 <= min(full) < 0.2
    assert 0.8 < max(full) <= 1.0
