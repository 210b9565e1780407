from __future__ import annotations

import json
from datetime import timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import (
    AnyFrame,
    Close,
    End,
    Failure,
    Ping,
    Reset,
    Result,
    RunInfo,
    RunTransition,
    Snapshot,
    TaskInfo,
    TaskTransition,
)
from stream_server.protocol.wire import Wire, decode_frame
from support.builders import EPOCH, KEY, at

CURSOR = ResumeToken(JournalPosition(EPOCH, 5, 9, (5, 7)))

texts = st.text(st.characters(exclude_categories=["Cs"]))
moments = st.datetimes(timezones=st.just(timezone.utc))
maybe_moments = st.none() | moments
counts = st.integers(-(2**63), 2**63 - 1)
states = st.none() | texts
raws = (
    st.recursive(
        st.none() | st.booleans() | counts | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=5,
    )
    .map(json.dumps)
    .map(lambda text: msgspec.Raw(text.encode()))
)
run_members: dict[str, Any] = {"dag_id": texts, "run_id": texts}
row_members: dict[str, Any] = {**run_members, "seq": counts, "at": moments}
instance_members: dict[str, Any] = {"task_id": texts, "map_index": counts, "try_number": counts, "state": states}
times: dict[str, Any] = {"start_date": maybe_moments, "end_date": maybe_moments}

frames: st.SearchStrategy[AnyFrame] = st.one_of(
    st.builds(
        Snapshot,
        **run_members,
        run=st.builds(RunInfo, state=states, queued_at=maybe_moments, clear_number=counts, **times),
        tasks=st.lists(st.builds(TaskInfo, **instance_members, **times), max_size=3),
        result_tasks=st.lists(texts, max_size=3),
        counts=st.dictionaries(texts, st.dictionaries(texts, counts, max_size=3), max_size=3),
    ),
    st.builds(TaskTransition, **row_members, **instance_members, previous_state=states),
    st.builds(RunTransition, **row_members, state=states, previous_state=states, clear_number=counts),
    st.builds(
        Result,
        **run_members,
        results=st.dictionaries(texts, raws, max_size=3),
        references=st.dictionaries(texts, st.builds(Reference, href=texts, bytes=counts), max_size=3),
        map_indexes=st.dictionaries(texts, st.lists(counts, max_size=3), max_size=3),
        seq=st.none() | counts,
        at=maybe_moments,
    ),
    st.builds(
        Failure,
        **run_members,
        reason=texts,
        task_id=states,
        map_index=st.none() | counts,
        try_number=st.none() | counts,
        state=states,
        predicted=st.booleans(),
        seq=st.none() | counts,
        at=maybe_moments,
    ),
    st.builds(Reset, **run_members, reason=st.sampled_from(["cleared", "retried", "revoked", "journal_changed"])),
    st.builds(
        End,
        **run_members,
        state=states,
        outcome=st.sampled_from(["result", "failure", "none"]),
        reason=states,
        task_id=states,
    ),
    st.builds(Close, code=counts, reason=texts, reconnect=st.booleans(), retry_ms=st.none() | counts),
    st.just(Ping()),
)


@given(frames)
def test_decode_inverts_encode(frame: AnyFrame) -> None:
    assert decode_frame(Wire(frame).json) == frame
    assert decode_frame(Wire(frame, CURSOR).text) == frame


@given(frames)
def test_type_is_first_and_cursor_last(frame: AnyFrame) -> None:
    wire = Wire(frame, CURSOR)
    members = list(json.loads(wire.text).items())
    assert members[0] == ("type", wire.type)
    assert members[-1] == ("cursor", str(CURSOR))
    assert dict(members[:-1]) == json.loads(wire.json)


@given(frames)
def test_without_a_cursor_the_text_is_the_json(frame: AnyFrame) -> None:
    assert Wire(frame).text.encode() == Wire(frame).json


@given(frames)
def test_a_frame_is_one_line(frame: AnyFrame) -> None:
    assert b"\n" not in Wire(frame).json


@given(frames, st.dictionaries(texts.map(lambda text: f"new {text}"), st.integers(), min_size=1, max_size=3))
def test_unknown_members_are_ignored(frame: AnyFrame, unknown: dict[str, int]) -> None:
    assert decode_frame(json.dumps({**json.loads(Wire(frame).json), **unknown})) == frame


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"type":"chunk","task_id":"answer"}', id="a type of a later version"),
        pytest.param('{"dag_id":"ask_llm"}', id="no type"),
        pytest.param('{"type":"end","dag_id":"ask_llm"}', id="members are missing"),
        pytest.param('["end"]', id="no object"),
        pytest.param("<html>", id="no JSON"),
        pytest.param("", id="empty"),
    ],
)
def test_malformed_frame_raises_the_documented_error(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_frame(text)


def test_times_are_rfc_3339_in_utc() -> None:
    frame = RunTransition(
        dag_id="d", run_id="r", seq=1, at=at(1), state="running", previous_state="queued", clear_number=0
    )
    assert json.loads(Wire(frame).json)["at"] == "2026-01-01T00:00:01Z"
    assert isinstance(decode_frame(Wire(frame).json), RunTransition)


def test_value_is_sent_as_the_database_holds_it() -> None:
    value = b'{"a": 1.10, "b":[1e2 ,"\\u00e4"]}'
    frame = Result(dag_id="d", run_id="r", results={"answer": msgspec.Raw(value)})
    assert value in Wire(frame).json


def test_missing_members_of_results_and_failures_are_left_out() -> None:
    result = Result(dag_id="d", run_id="r", results={})
    failure = Failure(dag_id="d", run_id="r", reason="run_failed")
    assert json.loads(Wire(result).json) == {"type": "result", "dag_id": "d", "run_id": "r", "results": {}}
    assert json.loads(Wire(failure).json) == {
        "type": "failure",
        "dag_id": "d",
        "run_id": "r",
        "reason": "run_failed",
    }


def test_transition_to_no_state_has_null() -> None:
    frame = TaskTransition(
        **KEY._asdict(),
        seq=1,
        at=at(0),
        task_id="t",
        map_index=-1,
        try_number=1,
        state=None,
        previous_state="success",
    )
    assert json.loads(Wire(frame).json)["state"] is None


def test_frame_is_framed_once_for_all_clients() -> None:
    calls: list[Wire] = []

    def frame(wire: Wire) -> bytes:
        calls.append(wire)
        return b"framed"

    wire = Wire(Ping())
    assert [wire.framed(frame) for _ in range(3)] == [b"framed"] * 3
    assert calls == [wire]


def test_frame_types_are_unique() -> None:
    kinds = AnyFrame.__args__
    names = {kind.__struct_config__.tag for kind in kinds}
    assert len(names) == len(kinds)


def test_clients_accept_reasons_of_later_versions() -> None:
    later = decode_frame('{"type":"reset","reason":"something_new","dag_id":"d","run_id":"r"}')
    assert isinstance(later, Reset)
    assert later.reason == "something_new"
