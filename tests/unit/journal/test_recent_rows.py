from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from stream_server.journal.recent_rows import MAX_RECENT_ROWS, RecentRow, RecentRows

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def mark(seq: int, txid: int) -> RecentRow:
    return RecentRow(seq, txid, NOON + timedelta(seconds=seq))


def test_one_row_of_each_transaction_is_remembered() -> None:
    marks = RecentRows()
    marks.add([mark(1, 10), mark(2, 11), mark(3, 10)])
    assert {(one.txid, one.seq) for one in marks.list_rows()} == {(10, 3), (11, 2)}


def test_what_is_there_at_the_beginning_counts_as_told() -> None:
    marks = RecentRows()
    marks.add([mark(1, 10)])
    marks.start([mark(9, 90), mark(8, 80)])
    marks.add([mark(10, 91)])
    assert marks.list_rows() == [mark(8, 80), mark(9, 90), mark(10, 91)]


@given(st.lists(st.lists(st.integers(1, 2000), max_size=40, unique=True), max_size=30))
def test_the_last_transactions_are_remembered(batches: list[list[int]]) -> None:
    marks, told = RecentRows(), []
    for batch in batches:
        marks.add([mark(txid, txid) for txid in batch])
        told += batch
    assert [one.txid for one in marks.list_rows()] == told[-MAX_RECENT_ROWS:]
