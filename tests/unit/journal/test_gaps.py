from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_server.journal.gaps import GapDetector
from stream_server.protocol.cursor import JournalPosition


def cursor(xmin: int, xmax: int) -> JournalPosition:
    return JournalPosition("e", xmin, xmax)


def test_the_first_count_is_no_news() -> None:
    losses = GapDetector()
    losses.start(5)
    assert not losses.check(5, cursor(10, 10))
    assert not losses.check(5, cursor(11, 11))


def test_a_loss_is_noticed_at_once_and_again_when_all_have_ended_that_were_in_progress() -> None:
    losses = GapDetector()
    losses.start(0)
    assert losses.check(1, cursor(10, 13))
    assert not losses.check(1, cursor(12, 15))
    assert losses.check(1, cursor(13, 16))
    assert not losses.check(1, cursor(16, 16))


def test_a_further_loss_is_waited_for_too() -> None:
    losses = GapDetector()
    losses.start(0)
    assert losses.check(1, cursor(10, 12))
    assert losses.check(2, cursor(11, 20))
    assert not losses.check(2, cursor(12, 20))
    assert losses.check(2, cursor(20, 20))


def test_what_the_counter_does_not_know_is_waited_for() -> None:
    losses = GapDetector()
    losses.start(0)
    losses.record_gap(cursor(10, 12))
    assert not losses.check(0, cursor(11, 12))
    assert losses.check(0, cursor(12, 12))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30))
def test_after_the_last_loss_watchers_begin_anew_when_its_transactions_have_ended(
    steps: list[tuple[int, int, bool]],
) -> None:
    losses, count, xmin, xmax = GapDetector(), 0, 1, 1
    losses.start(count)
    owed_at: int | None = None
    for ended, begun, lost in [*steps, (0, 0, False)]:
        xmax += begun
        xmin = min(xmin + ended, xmax)
        count += lost
        if lost:
            owed_at = xmax
        anew = losses.check(count, cursor(xmin, xmax))
        assert anew == (lost or (owed_at is not None and xmin >= owed_at))
        if anew and not lost:
            owed_at = None
