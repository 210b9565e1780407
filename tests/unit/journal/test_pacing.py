"""When a tail is busy, and when it may go idle."""

from __future__ import annotations

import pytest

from stream_server.journal.pacing import BUSY_SECONDS, BUSY_TRANSACTIONS, PAUSE_BOUNDS, PAUSE_RATIO, Pacing

READ_SECONDS = 0.001


def pacing_after(*, rate: float, waits: float, seconds: float = 2.0) -> Pacing:
    """Return the pacing after some seconds, with one transaction in each read."""
    pacing = Pacing()
    for number in range(int(seconds * rate) + 1):
        pacing.record(number / rate, [waits], READ_SECONDS)
    return pacing


@pytest.mark.parametrize("number", [BUSY_TRANSACTIONS - 1, BUSY_TRANSACTIONS])
def test_many_transactions_make_it_busy(number: int) -> None:
    pacing = Pacing()
    pacing.record(1.0, [0.001] * (number - 1), READ_SECONDS)
    pacing.record(1.01, [0.001], READ_SECONDS)
    assert pacing.is_busy == (number >= BUSY_TRANSACTIONS)
    assert not pacing.is_quiet(1.01)


@pytest.mark.parametrize(("rate", "waits"), [(1, 0.002), (50, 0.01), (200, 0.004), (400, 0.002)])
def test_it_is_not_busy_if_transactions_do_not_wait_long(rate: float, waits: float) -> None:
    assert not pacing_after(rate=rate, waits=waits).is_busy


def test_few_transactions_that_wait_for_each_other_make_it_busy() -> None:
    assert pacing_after(rate=110, waits=0.07).is_busy, "eight writers whose commits take 9 ms each, one after the other"


def test_long_transactions_do_not_count_as_many() -> None:
    assert not pacing_after(rate=20, waits=5.0).is_busy


def test_it_is_quiet_after_the_last_transaction() -> None:
    pacing = pacing_after(rate=1000, waits=0.002, seconds=1.0)
    assert not pacing.is_quiet(1.0)
    assert pacing.is_quiet(1.0 + BUSY_SECONDS)
    assert not pacing.is_busy


def test_it_is_quiet_with_few_transactions() -> None:
    assert pacing_after(rate=20, waits=0.005).is_quiet(2.0)
    assert not pacing_after(rate=200, waits=0.005).is_quiet(2.0)


def test_it_is_not_quiet_while_it_is_busy() -> None:
    pacing = Pacing()
    pacing.record(1.0, [0.2] * 3, READ_SECONDS)
    assert pacing.is_busy
    assert not pacing.is_quiet(1.0)


def test_the_pause_grows_with_the_duration_of_a_read() -> None:
    pacing, pauses = Pacing(), []
    for took in (0.0001, 0.008, 1.0):
        pacing.record(1.0, [], took)
        pauses.append(pacing.pause_seconds)
    assert pauses == [PAUSE_BOUNDS[0], PAUSE_RATIO * 0.008, PAUSE_BOUNDS[1]]


def test_a_transition_waits_for_at_most_15_ms_if_reads_take_4() -> None:
    pacing = Pacing()
    pacing.record(1.0, [], 0.004)
    # A transition that is committed just after the snapshot of a read is found by the next one.
    assert 0.004 + pacing.pause_seconds + 0.004 <= 0.015


@pytest.mark.parametrize("flush", [0.0005, 0.001, 0.004, 0.02])
@pytest.mark.parametrize(("writers", "is_busy"), [(1, False), (8, True), (32, True)])
def test_writers_that_notify_can_make_it_busy(writers: int, is_busy: bool, flush: float) -> None:
    """Transactions that notify commit one after the other, so their rate is low however many writers there are.

    `PreCommit_Notify` in PostgreSQL's `async.c` takes a lock on the whole database until the end of the transaction.
    """
    pacing, rate = Pacing(), 1 / flush
    # Each writer writes as soon as its last commit is done, and then waits for all others.
    for number in range(int(2 * rate)):
        pacing.record(number * flush, [writers * flush], READ_SECONDS)
        if pacing.is_busy:
            break
    assert pacing.is_busy == (is_busy or rate > BUSY_TRANSACTIONS / BUSY_SECONDS)
