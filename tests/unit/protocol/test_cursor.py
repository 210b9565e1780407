from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.errors import CursorError
from stream_server.protocol.cursor import JournalPosition, JournalRow

TXIDS = st.integers(1, 2**64 - 1)
EPOCHS = st.text("0123456789abcdef", min_size=1, max_size=32)

almost_cursors = st.text() | st.from_regex(r"[0-9a-f]{1,3}\.[0-9]{1,3}:[0-9]{1,3}:[0-9,]{0,8}(\.end)?\n?")


@st.composite
def cursors(draw: st.DrawFn) -> JournalPosition:
    """Any snapshot that PostgreSQL can take: the running ones ascend from `xmin` and stay below `xmax`."""
    xmin, xmax = sorted((draw(TXIDS), draw(TXIDS)))
    running = draw(st.sets(st.integers(xmin, xmax - 1), max_size=8)) if xmin < xmax else set()
    snapshot = min(running, default=xmin), xmax, tuple(sorted(running))
    return JournalPosition(draw(EPOCHS), *snapshot, withheld=draw(st.booleans()), ended=draw(st.booleans()))


@st.composite
def snapshots_of_one_history(draw: st.DrawFn) -> list[tuple[JournalPosition, frozenset[int]]]:
    """Snapshots one after the other, each with the transactions that had ended by then.

    `xmax` is one more than the highest transaction that has ended (`GetSnapshotData`).
    """
    begun = draw(st.integers(1, 5))
    ended: set[int] = set()
    taken = []
    for more, choice in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=15)):
        begun += more
        running = [txid for txid in range(1, begun) if txid not in ended]
        if running and choice < 8:
            ended.add(running[choice % len(running)])
        xmax = max(ended, default=0) + 1
        xip = tuple(txid for txid in range(1, xmax) if txid not in ended)
        taken.append((JournalPosition("7f3a", min(xip, default=xmax), xmax, xip), frozenset(ended)))
    return taken


@given(cursors())
def test_a_cursor_survives_the_wire(cursor: JournalPosition) -> None:
    assert JournalPosition.parse(str(cursor)) == cursor
    assert JournalPosition.from_snapshot(cursor.epoch, cursor.snapshot) == JournalPosition(
        cursor.epoch, cursor.xmin, cursor.xmax, cursor.xip
    )


@given(snapshots_of_one_history())
def test_a_snapshot_saw_exactly_what_had_ended(snapshots: list[tuple[JournalPosition, frozenset[int]]]) -> None:
    for cursor, ended in snapshots:
        assert {txid for txid in range(1, 60) if cursor.is_visible(txid)} == ended


@given(cursors(), TXIDS)
def test_saw_is_pg_visible_in_snapshot(cursor: JournalPosition, txid: int) -> None:
    for one in (txid, cursor.xmin, cursor.xmax, cursor.xmax - 1, *cursor.xip):
        assert cursor.is_visible(one) == (one < cursor.xmax and one not in cursor.xip)


@given(snapshots_of_one_history())
def test_a_cursor_covers_what_had_ended_for_the_other_one_too(
    snapshots: list[tuple[JournalPosition, frozenset[int]]],
) -> None:
    for cursor, ended in snapshots:
        for other, others_ended in snapshots:
            assert cursor.covers(other) == (others_ended <= ended)


@given(cursors())
def test_a_cursor_covers_itself_and_nothing_of_another_journal(cursor: JournalPosition) -> None:
    assert cursor.covers(cursor)
    assert not cursor.covers(JournalPosition(cursor.epoch + "0", 1, 1))


@given(almost_cursors)
def test_no_text_raises_anything_but_a_cursor_error(text: str) -> None:
    with suppress(CursorError):
        JournalPosition.parse(text)


@given(almost_cursors)
def test_what_is_accepted_was_made_by_str(text: str) -> None:
    with suppress(CursorError):
        assert str(JournalPosition.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("1:1:", id="no epoch"),
        pytest.param("7F3A.1:1:", id="capitals"),
        pytest.param("7f3a.1:1", id="no list"),
        pytest.param("7f3a.1:3:1,", id="a comma at the end"),
        pytest.param("7f3a.1:1:.END", id="another ending"),
        pytest.param("7f3a.1:1:\n", id="a newline at the end"),
        pytest.param("7f3a.-1:1:", id="negative"),
        pytest.param("7f3a.\u0661:\u0662:", id="digits of another script"),
        pytest.param("7f3a." + "1" * 21 + ":1:", id="more digits than xid8 has"),
    ],
)
def test_a_damaged_cursor_is_refused(text: str) -> None:
    with pytest.raises(CursorError, match="Not a"):
        JournalPosition.parse(text)


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param("5:3:", id="xmin above xmax"),
        pytest.param("1:9:7,5", id="descending"),
        pytest.param("1:9:9", id="running at xmax"),
        pytest.param("4:9:3", id="running below xmin"),
        pytest.param("0:0:", id="zero is no transaction"),
    ],
)
def test_a_snapshot_that_postgresql_would_refuse_is_refused(snapshot: str) -> None:
    with pytest.raises(CursorError):
        JournalPosition.from_snapshot("7f3a", snapshot)
    with pytest.raises(CursorError):
        JournalPosition.parse(f"7f3a.{snapshot}")


def test_the_refusal_does_not_repeat_a_long_text() -> None:
    with pytest.raises(CursorError) as refused:
        JournalPosition.parse("x" * 10_000)
    assert len(str(refused.value)) < 200


def test_the_end_of_a_stream_is_part_of_the_cursor() -> None:
    cursor = JournalPosition("7f3a", 5, 9, (5, 7))
    assert str(cursor) == "7f3a.5:9:5,7"
    assert str(cursor.of(None, ended=True)) == "7f3a.5:9:5,7.end"
    assert str(cursor.of("result", ended=True, withheld=True)) == "7f3a.5:9:5,7.result.withheld.end"
    assert JournalPosition.parse("7f3a.5:9:5,7.end").ended


def test_a_cursor_knows_the_row_that_it_has_seen_last() -> None:
    written = datetime(2026, 1, 1, 12, 0, 0, 123456, timezone.utc)
    cursor = JournalPosition("7f3a", 5, 9, (5, 7)).up_to(6, JournalRow.from_time(41, written))
    assert str(cursor) == "7f3a.5:7:5~41-1767268800123456"
    read = JournalPosition.parse(f"{cursor}.result.end")
    assert read.row is not None
    assert (read.row.seq, read.row.written_at) == (41, written)
    assert (read.told, read.ended) == ("result", True)
    assert cursor.up_to(6).row is None


@given(snapshots_of_one_history(), st.sets(st.integers(1, 70)))
def test_a_cursor_that_is_told_of_more_has_seen_that_and_nothing_else(
    snapshots: list[tuple[JournalPosition, frozenset[int]]], more: set[int]
) -> None:
    cursor, ended = snapshots[-1]
    wider = cursor.with_visible(more)
    assert {txid for txid in range(1, 90) if wider.is_visible(txid)} == ended | more
    assert wider.covers(cursor)
    assert JournalPosition.parse(str(wider)) == wider
