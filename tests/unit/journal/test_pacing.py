"""When a tail stays awake, and when it lies down."""

from __future__ import annotations

import pytest

from stream_server.journal.pacing import BUSY_SECONDS, BUSY_TRANSACTIONS, PAUSE_BOUNDS, PAUSE_RATIO, Pacing

READ_SECONDS = 0.001


def found(*, rate: float, waits: float, seconds: float = 2.0) -> Pacing:
    """Return the pace after so many seconds, with a transaction for each read."""
    pace = Pacing()
    for number in range(int(seconds * rate) + 1):
        pace.record(number / rate, [waits], READ_SECONDS)
    return pace


@pytest.mark.parametrize("number", [BUSY_TRANSACTIONS - 1, BUSY_TRANSACTIONS])
def test_many_transactions_keep_it_awake(number: int) -> None:
    pace = Pacing()
    pace.record(1.0, [0.001] * (number - 1), READ_SECONDS)
    pace.record(1.01, [0.001], READ_SECONDS)
    assert pace.is_busy == (number >= BUSY_TRANSACTIONS)
    assert not pace.is_quiet(1.01)


@pytest.mark.parametrize(("rate", "waits"), [(1, 0.002), (50, 0.01), (200, 0.004), (400, 0.002)])
def test_rings_will_do_where_nobody_waits_for_long(rate: float, waits: float) -> None:
    assert not found(rate=rate, waits=waits).is_busy


def test_it_gets_up_for_few_that_wait_for_each_other() -> None:
    assert found(rate=110, waits=0.07).is_busy, "eight writers whose commits take 9 ms each, one after the other"


def test_long_transactions_do_not_look_like_many() -> None:
    assert not found(rate=20, waits=5.0).is_busy


def test_it_lies_down_when_all_is_over() -> None:
    pace = found(rate=1000, waits=0.002, seconds=1.0)
    assert not pace.is_quiet(1.0)
    assert pace.is_quiet(1.0 + BUSY_SECONDS)
    assert not pace.is_busy


def test_it_lies_down_where_little_comes() -> None:
    assert found(rate=20, waits=0.005).is_quiet(2.0)
    assert not found(rate=200, waits=0.005).is_quiet(2.0)


def test_what_has_made_it_get_up_does_not_let_it_lie_down() -> None:
    pace = Pacing()
    pace.record(1.0, [0.2] * 3, READ_SECONDS)
    assert pace.is_busy
    assert not pace.is_quiet(1.0)


def test_the_pause_grows_with_what_a_read_takes() -> None:
    pace, pauses = Pacing(), []
    for took in (0.0001, 0.003, 1.0):
        pace.record(1.0, [], took)
        pauses.append(pace.pause_seconds)
    assert pauses == [PAUSE_BOUNDS[0], PAUSE_RATIO * 0.003, PAUSE_BOUNDS[1]]


@pytest.mark.parametrize("flush", [0.0005, 0.001, 0.004, 0.02])
@pytest.mark.parametrize(("writers", "gets_up"), [(1, False), (8, True), (32, True)])
def test_writers_who_ring_do_not_keep_it_asleep(writers: int, gets_up: bool, flush: float) -> None:
    """Those who ring commit one by one, so that however many they are, few come in a second (`PreCommit_Notify` in
    PostgreSQL's `async.c` takes a lock of the whole database, up to the end of the transaction).
    """
    pace, rate = Pacing(), 1 / flush
    # Each of them has written as soon as its last commit was done, and then waits for all others.
    for number in range(int(2 * rate)):
        pace.record(number * flush, [writers * flush], READ_SECONDS)
        if pace.is_busy:
            break
    assert pace.is_busy == (gets_up or rate > BUSY_TRANSACTIONS / BUSY_SECONDS)
