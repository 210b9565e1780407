from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from stream_server.journal.recent_rows import MAX_RECENT_ROWS, RecentRow, RecentRows

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def row(seq: int, txid: int) -> RecentRow:
    return RecentRow(seq, txid, NOON + timedelta(seconds=seq))


def test_the_last_row_of_each_transaction_is_kept() -> None:
    recent = RecentRows()
    recent.add([row(1, 10), row(2, 11), row(3, 10)])
    assert {(each.txid, each.seq) for each in recent.list_rows()} == {(10, 3), (11, 2)}


def test_start_replaces_all_rows() -> None:
    recent = RecentRows()
    recent.add([row(1, 10)])
    recent.start([row(9, 90), row(8, 80)])
    recent.add([row(10, 91)])
    assert recent.list_rows() == [row(8, 80), row(9, 90), row(10, 91)]


@given(st.lists(st.lists(st.integers(1, 2000), max_size=40, unique=True), max_size=30))
def test_the_last_transactions_are_kept(batches: list[list[int]]) -> None:
    recent, added = RecentRows(), []
    for batch in batches:
        recent.add([row(txid, txid) for txid in batch])
        added += batch
    assert [each.txid for each in recent.list_rows()] == added[-MAX_RECENT_ROWS:]
