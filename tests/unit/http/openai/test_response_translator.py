from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.run_state import RunKey
from stream_server.http.openai.response_objects import ResponseHead, decode_response_id, encode_response_id
from stream_server.http.openai.response_translator import ResponseTranslator
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import AnyFrame, Close, End, Result
from stream_server.protocol.output_frames import Chunk

KEY = RunKey("chat", "r1")
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def build_chunk(index: int, text: str) -> Chunk:
    return Chunk(
        dag_id=KEY.dag_id,
        run_id=KEY.run_id,
        seq=index,
        at=NOW,
        task_id="answer",
        map_index=-1,
        try_number=1,
        index=index,
        value=msgspec.Raw(json.dumps(text).encode()),
    )


def build_frames(parts: list[str]) -> list[AnyFrame]:
    """Return the frames of a run that writes text in parts."""
    raw = msgspec.Raw(json.dumps("".join(parts)).encode())
    return [
        *(build_chunk(index, part) for index, part in enumerate(parts)),
        Result(dag_id=KEY.dag_id, run_id=KEY.run_id, results={"answer": raw}),
        End(dag_id=KEY.dag_id, run_id=KEY.run_id, state="success", outcome="result"),
    ]


def translate(frames: list[AnyFrame], starting_after: int = -1) -> list[dict[str, Any]]:
    translator = ResponseTranslator(ResponseHead(KEY, 0), starting_after)
    body = translator.start() + b"".join([translator.translate(frame) for frame in frames])
    return [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: ")]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("delta", "") for event in events)


@given(st.lists(st.text(min_size=1, max_size=5), max_size=6), st.lists(st.text(min_size=1, max_size=5), max_size=6))
def test_a_stream_resumes_after_each_event_however_the_text_was_split(before: list[str], after: list[str]) -> None:
    whole = "".join(before + after)
    events = translate(build_frames(before + after))
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert text_of(events) == whole
    # Another server may get the same text in one piece.
    for position, number in enumerate(numbers):
        resumed = translate(build_frames([whole] if whole else []), number)
        assert text_of(events[: position + 1]) + text_of(resumed) == whole
        kept = [event["type"] for event in events[position + 1 :] if event["type"] != "response.output_text.delta"]
        assert [event["type"] for event in resumed if event["type"] != "response.output_text.delta"] == kept


def test_the_end_of_a_connection_is_no_failure_of_the_response() -> None:
    closed = Close(code=int(CloseCode.DRAINING), reason="The server stops", reconnect=True)
    events = translate([build_chunk(0, "Be"), closed])
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "stream_draining")
    assert events[-1]["sequence_number"] == events[-2]["sequence_number"]


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_id_has_the_run_in_it(dag_id: str, run_id: str) -> None:
    key = RunKey(dag_id, run_id)
    assert decode_response_id(encode_response_id(key)) == key


@given(st.text(max_size=30))
def test_other_ids_are_no_error(text: str) -> None:
    decode_response_id(f"resp_{text}")
    assert decode_response_id(text) is None or text.startswith("resp_")
