from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.errors import CursorError
from stream_server.protocol.cursor import JournalPosition, JournalRow, ResumePoint, ResumeToken, SentOutcome

TXIDS = st.integers(1, 2**64 - 1)
EPOCHS = st.text("0123456789abcdef", min_size=1, max_size=32)

almost_cursors = st.text() | st.from_regex(r"[0-9a-f]{1,3}\.[0-9]{1,3}:[0-9]{1,3}:[0-9,]{0,8}(\.end)?\n?")


@st.composite
def positions(draw: st.DrawFn) -> JournalPosition:
    """Any snapshot that PostgreSQL can take: transactions in progress ascend from `xmin` and stay below `xmax`."""
    xmin, xmax = sorted((draw(TXIDS), draw(TXIDS)))
    running = draw(st.sets(st.integers(xmin, xmax - 1), max_size=8)) if xmin < xmax else set()
    return JournalPosition(draw(EPOCHS), min(running, default=xmin), xmax, tuple(sorted(running)))


rows = st.builds(JournalRow, st.integers(1, 10**18 - 1), st.integers(0, 10**17 - 1))
outcomes: st.SearchStrategy[SentOutcome | None] = st.sampled_from(["result", "failure", None])


@st.composite
def tokens(draw: st.DrawFn) -> ResumeToken:
    position = draw(positions())
    position = JournalPosition(position.epoch, position.xmin, position.xmax, position.xip, draw(st.none() | rows))
    return ResumeToken(position, draw(outcomes), draw(st.booleans()), draw(st.booleans()))


@st.composite
def snapshots_of_one_history(draw: st.DrawFn) -> list[tuple[JournalPosition, frozenset[int]]]:
    """Snapshots one after the other, each with the transactions that had ended by then.

    `xmax` is one more than the highest transaction that has ended (`GetSnapshotData`).
    """
    started = draw(st.integers(1, 5))
    ended: set[int] = set()
    taken = []
    for more, choice in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=15)):
        started += more
        running = [txid for txid in range(1, started) if txid not in ended]
        if running and choice < 8:
            ended.add(running[choice % len(running)])
        xmax = max(ended, default=0) + 1
        xip = tuple(txid for txid in range(1, xmax) if txid not in ended)
        taken.append((JournalPosition("7f3a", min(xip, default=xmax), xmax, xip), frozenset(ended)))
    return taken


@given(tokens())
def test_parse_inverts_str(token: ResumeToken) -> None:
    assert ResumeToken.parse(str(token)) == token


@given(positions())
def test_from_snapshot_inverts_snapshot(position: JournalPosition) -> None:
    assert JournalPosition.from_snapshot(position.epoch, position.snapshot) == position


@given(snapshots_of_one_history())
def test_visible_transactions_are_those_that_had_ended(snapshots: list[tuple[JournalPosition, frozenset[int]]]) -> None:
    for position, ended in snapshots:
        assert {txid for txid in range(1, 60) if position.is_visible(txid)} == ended


@given(positions(), TXIDS)
def test_is_visible_equals_pg_visible_in_snapshot(position: JournalPosition, txid: int) -> None:
    for one in (txid, position.xmin, position.xmax, position.xmax - 1, *position.xip):
        assert position.is_visible(one) == (one < position.xmax and one not in position.xip)


@given(snapshots_of_one_history())
def test_position_covers_another_if_all_visible_there_is_visible_here(
    snapshots: list[tuple[JournalPosition, frozenset[int]]],
) -> None:
    for position, ended in snapshots:
        for other, others_ended in snapshots:
            assert position.covers(other) == (others_ended <= ended)


@given(positions())
def test_position_covers_itself_and_nothing_of_another_journal(position: JournalPosition) -> None:
    assert position.covers(position)
    assert not position.covers(JournalPosition(position.epoch + "0", 1, 1))


@given(almost_cursors)
def test_parse_raises_only_cursor_errors(text: str) -> None:
    with suppress(CursorError):
        ResumeToken.parse(text)


@given(almost_cursors)
def test_parse_accepts_only_what_str_makes(text: str) -> None:
    with suppress(CursorError):
        assert str(ResumeToken.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("1:1:", id="no epoch"),
        pytest.param("7F3A.1:1:", id="capitals"),
        pytest.param("7f3a.1:1", id="no list"),
        pytest.param("7f3a.1:3:1,", id="trailing comma"),
        pytest.param("7f3a.1:1:.END", id="wrong suffix"),
        pytest.param("7f3a.1:1:\n", id="trailing newline"),
        pytest.param("7f3a.-1:1:", id="negative"),
        pytest.param("7f3a.\u0661:\u0662:", id="digits of another script"),
        pytest.param("7f3a." + "1" * 21 + ":1:", id="more digits than xid8 has"),
    ],
)
def test_damaged_cursor_is_refused(text: str) -> None:
    with pytest.raises(CursorError, match="Not a"):
        ResumeToken.parse(text)


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param("5:3:", id="xmin above xmax"),
        pytest.param("1:9:7,5", id="descending"),
        pytest.param("1:9:9", id="running at xmax"),
        pytest.param("4:9:3", id="running below xmin"),
        pytest.param("0:0:", id="zero is not a transaction"),
    ],
)
def test_snapshot_that_postgresql_would_refuse_is_refused(snapshot: str) -> None:
    with pytest.raises(CursorError):
        JournalPosition.from_snapshot("7f3a", snapshot)
    with pytest.raises(CursorError):
        ResumeToken.parse(f"7f3a.{snapshot}")


def test_error_does_not_repeat_a_long_text() -> None:
    with pytest.raises(CursorError) as refused:
        ResumeToken.parse("x" * 10_000)
    assert len(str(refused.value)) < 200


def test_text_form_contains_outcome_redaction_and_end() -> None:
    position = JournalPosition("7f3a", 5, 9, (5, 7))
    assert str(ResumeToken(position)) == "7f3a.5:9:5,7"
    assert str(ResumeToken(position, has_ended=True)) == "7f3a.5:9:5,7.end"
    token = ResumeToken(position, "result", lacks_values=True, has_ended=True)
    assert str(token) == "7f3a.5:9:5,7.result.withheld.end"
    assert ResumeToken.parse(str(token)) == token
    token = token._replace(lacks_inputs=True)
    assert str(token) == "7f3a.5:9:5,7.result.withheld.noinput.end"
    assert ResumeToken.parse(str(token)) == token
    assert ResumeToken.parse("7f3a.5:9:5,7.noinput") == ResumeToken(position, lacks_inputs=True)
    assert ResumeToken.parse("7f3a.5:9:5,7.end").has_ended


def test_text_form_contains_the_last_row() -> None:
    written_at = datetime(2026, 1, 1, 12, 0, 0, 123456, timezone.utc)
    position = JournalPosition("7f3a", 5, 9, (5, 7)).up_to(6, JournalRow.from_time(41, written_at))
    assert str(ResumeToken(position)) == "7f3a.5:7:5~41-1767268800123456"
    token = ResumeToken.parse("7f3a.5:7:5~41-1767268800123456.result.end")
    assert token == ResumeToken(position, "result", has_ended=True)
    assert position.row is not None
    assert (position.row.seq, position.row.written_at) == (41, written_at)
    assert position.up_to(6).row is None


@given(snapshots_of_one_history(), st.sets(st.integers(1, 70)))
def test_with_visible_adds_these_transactions_only(
    snapshots: list[tuple[JournalPosition, frozenset[int]]], more: set[int]
) -> None:
    position, ended = snapshots[-1]
    wider = position.with_visible(more)
    assert {txid for txid in range(1, 90) if wider.is_visible(txid)} == ended | more
    assert wider.covers(position)
    assert JournalPosition.from_snapshot(wider.epoch, wider.snapshot) == wider


def test_resume_point_of_a_damaged_cursor_has_no_token() -> None:
    assert ResumePoint.parse(None) is None
    assert ResumePoint.parse("damaged") == ResumePoint(None)
    token = ResumeToken(JournalPosition("7f3a", 1, 1), has_ended=True)
    assert ResumePoint.parse(str(token)) == ResumePoint(token)
    assert ResumePoint(token).has_ended
