from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_server.journal.gaps import GapDetector
from stream_server.protocol.cursor import JournalPosition


def snapshot(xmin: int, xmax: int) -> JournalPosition:
    return JournalPosition("e", xmin, xmax)


def test_the_count_at_the_start_is_no_gap() -> None:
    gaps = GapDetector()
    gaps.start(5)
    assert not gaps.check(5, snapshot(10, 10))
    assert not gaps.check(5, snapshot(11, 11))


def test_a_gap_needs_a_resync_at_once_and_when_all_transactions_in_progress_have_ended() -> None:
    gaps = GapDetector()
    gaps.start(0)
    assert gaps.check(1, snapshot(10, 13))
    assert not gaps.check(1, snapshot(12, 15))
    assert gaps.check(1, snapshot(13, 16))
    assert not gaps.check(1, snapshot(16, 16))


def test_a_second_gap_moves_the_second_resync() -> None:
    gaps = GapDetector()
    gaps.start(0)
    assert gaps.check(1, snapshot(10, 12))
    assert gaps.check(2, snapshot(11, 20))
    assert not gaps.check(2, snapshot(12, 20))
    assert gaps.check(2, snapshot(20, 20))


def test_a_recorded_gap_needs_the_second_resync_only() -> None:
    gaps = GapDetector()
    gaps.start(0)
    gaps.record_gap(snapshot(10, 12))
    assert not gaps.check(0, snapshot(11, 12))
    assert gaps.check(0, snapshot(12, 12))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30))
def test_after_the_last_gap_a_resync_follows_when_its_transactions_have_ended(
    steps: list[tuple[int, int, bool]],
) -> None:
    gaps, count, xmin, xmax = GapDetector(), 0, 1, 1
    gaps.start(count)
    due_at: int | None = None
    for ended, started, lost in [*steps, (0, 0, False)]:
        xmax += started
        xmin = min(xmin + ended, xmax)
        count += lost
        if lost:
            due_at = xmax
        needs_resync = gaps.check(count, snapshot(xmin, xmax))
        assert needs_resync == (lost or (due_at is not None and xmin >= due_at))
        if needs_resync and not lost:
            due_at = None
