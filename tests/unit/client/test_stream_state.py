from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.client import ConnectionLost, Forbidden, ServerError, StreamClosed, TokenExpired, UnexpectedResponse
from stream_server.client.credential import Credential
from stream_server.client.frames import Chunk, ConnectionFrame, KnownFrame, UnknownFrame, decode_frame
from stream_server.client.requests import (
    Request,
    Response,
    RunKey,
    WatchOptions,
    many_runs_request,
    stream_request,
    trigger_request,
)
from stream_server.client.retries import Retries
from stream_server.client.stream_state import CONNECTION_LOST, StreamState
from stream_server.protocol import frames as protocol

KEY = RunKey("d", "r")
OPTIONS = WatchOptions(results=["a b"], until="run")
OPENED = Response(200, {"content-type": "application/x-ndjson"}, b"")
RUN = {"dag_id": "d", "run_id": "r"}
INFO = {"state": "running", "queued_at": None, "start_date": None, "end_date": None, "clear_number": 0}
SNAPSHOT = {"type": "snapshot", **RUN, "run": INFO, "tasks": [], "result_tasks": []}
END = {"type": "end", **RUN, "state": "success", "outcome": "none"}
TRIGGER = trigger_request(
    "d",
    {},
    run_id=None,
    logical_date=None,
    note=None,
    body=None,
    idempotency_key=None,
    attach=False,
    options=OPTIONS,
)


def chunk(index: int, **others: Any) -> dict[str, Any]:
    at = "2026-11-22T14:21:11.61Z"
    members = {"seq": 1, "at": at, "task_id": "t", "map_index": -1, "try_number": 1, "index": index, "value": index}
    return {"type": "chunk", **RUN, **members, **others}


def close(code: int, *, reconnect: bool, **others: Any) -> dict[str, Any]:
    return {"type": "close", "code": code, "reason": "over", "reconnect": reconnect, **others}


def lines(*frames: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)


def new_state(
    request: Request | None = None, *, options: WatchOptions | None = OPTIONS, can_renew: bool = False
) -> StreamState:
    request = stream_request(KEY, OPTIONS) if request is None else request
    return StreamState(request, options, Credential("t0ken", can_renew=can_renew), Retries("http://h", 5.0, 0.0))


def test_frames_are_those_of_the_protocol_with_decoded_values() -> None:
    ours = {str(kind.__struct_config__.tag): kind for kind in (*get_args(KnownFrame), *get_args(ConnectionFrame))}
    theirs = {str(kind.__struct_config__.tag): kind for kind in get_args(protocol.AnyFrame)}
    assert ours.keys() == theirs.keys()
    for tag, kind in ours.items():
        assert set(kind.__struct_fields__) == set(theirs[tag].__struct_fields__)
        assert "Raw" not in repr(msgspec.inspect.type_info(kind)), tag


def test_a_frame_of_an_unknown_type_is_kept() -> None:
    match decode_frame(b'{"type":"later","seq":7,"more":[1]}'):
        case UnknownFrame(type="later", members={"more": [1]}, seq=7):
            pass
        case other:
            pytest.fail(repr(other))
    for line in (b"<html>", b"[]", b"{", b'{"type":7}', b'"x"', b"\xff", b"[" * 3_000, b"1e400", b'{"type":"chu'):
        assert decode_frame(line) is None


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b"1e400", float("inf")),
        (b"[-1e400, 10.5]", [float("-inf"), 10.5]),
        (b'"a\xff"', "a\ufffd"),
        (rb'"\ud800"', "\ud800"),
    ],
)
def test_values_that_msgspec_refuses_are_decoded(sent: bytes, value: Any) -> None:
    state = new_state()
    state.next_request()
    line = lines(chunk(0, value="VALUE", cursor="c:1")).replace(b'"VALUE"', sent)
    (frame,) = state.receive(line)
    assert isinstance(frame, Chunk)
    assert (frame.value, frame.at.year, state.cursor) == (value, 2026, "c:1")


@pytest.mark.parametrize("sent", [b"[" * 3_000 + b"]" * 3_000, b"1" * 5_000, b"nul"])
def test_a_frame_that_cannot_be_decoded_ends_the_stream_with_an_error(sent: bytes) -> None:
    state = new_state()
    state.next_request()
    body = msgspec.json.encode(chunk(0, value="VALUE", cursor="c:1")).replace(b'"VALUE"', sent) + b"\n"
    with pytest.raises(UnexpectedResponse, match="a frame cannot be decoded"):
        list(state.receive(body))
    assert state.cursor is None


@given(st.lists(st.integers(0, 400)))
def test_frames_do_not_depend_on_the_parts_of_the_body(cuts: list[int]) -> None:
    body = lines(SNAPSHOT, chunk(0), {"type": "ping"}, chunk(1, value="\u2028ü"), END)
    places = sorted({0, *(cut % len(body) for cut in cuts), len(body)})
    state = new_state()
    state.next_request()
    state.record_response(OPENED)
    received = [frame for begin, end in pairwise(places) for frame in state.receive(body[begin:end])]
    assert [type(frame).__name__ for frame in received] == ["Snapshot", "Chunk", "Chunk", "End"]
    assert [frame.value for frame in received if isinstance(frame, Chunk)] == [0, "\u2028ü"]
    assert state.is_over


def test_a_stream_resumes_after_its_last_cursor_and_drops_repetitions() -> None:
    state = new_state()
    assert "cursor" not in state.next_request().target
    state.record_response(OPENED)
    first = list(state.receive(lines({**SNAPSHOT, "cursor": "c:1"}, chunk(0), chunk(1)) + b'{"type":"chu'))
    state.record_loss(ConnectionLost("broken"), 1.0)
    request = state.next_request()
    assert request.target == "/api/v2/dags/d/dagRuns/r/stream?result=a+b&until=run&confirm=push&cursor=c%3A1"
    resumed = {"type": "resumed", **RUN, "since": "c:1"}
    second = list(state.receive(lines(resumed, chunk(0), chunk(1), chunk(2, cursor="c:2"))))
    assert [type(frame).__name__ for frame in first] == ["Snapshot", "Chunk", "Chunk"]
    assert [type(frame).__name__ for frame in second] == ["Resumed", "Chunk"]
    assert state.cursor == "c:2"


def receive_all(state: StreamState, *frames: dict[str, Any]) -> list[str]:
    state.next_request()
    state.record_response(OPENED)
    return [type(frame).__name__ for frame in state.receive(lines(*frames))]


def test_output_of_several_runs_is_no_repetition() -> None:
    state = new_state(many_runs_request({"type": "chunk"}), options=None)
    frames = [chunk(0, seq=1), chunk(0, seq=2, run_id="r2"), chunk(0, seq=3, dag_id="d2")]
    assert receive_all(state, *frames) == ["Chunk", "Chunk", "Chunk"]
    assert receive_all(state, *frames) == []


def test_output_of_unknown_types_is_no_repetition_within_a_row() -> None:
    state = new_state()
    frames = [chunk(0), chunk(1, type="later"), chunk(2, type="later"), {"type": "later", **RUN, "seq": [1]}]
    assert receive_all(state, *frames) == ["Chunk", "UnknownFrame", "UnknownFrame", "UnknownFrame"]
    assert receive_all(state, *frames) == []


def test_the_cursor_moves_with_the_frames_that_were_yielded() -> None:
    state = new_state()
    state.next_request()
    frames = state.receive(lines({**SNAPSHOT, "cursor": "c:1"}, chunk(0, cursor="c:2")))
    next(frames)
    assert state.cursor == "c:1"
    next(frames)
    assert state.cursor == "c:2"


def test_a_connection_lost_before_the_first_cursor_is_reported_as_a_reset() -> None:
    state = new_state()
    state.next_request()
    list(state.receive(lines(SNAPSHOT, chunk(0))))
    state.next_request()
    again = list(state.receive(lines(SNAPSHOT, chunk(0))))
    assert [type(frame).__name__ for frame in again] == ["Reset", "Snapshot", "Chunk"]
    assert getattr(again[0], "reason", None) == CONNECTION_LOST
    # A reset of the server is not repeated.
    reset = {"type": "reset", **RUN, "reason": "cleared"}
    assert [type(frame).__name__ for frame in state.receive(lines(reset, SNAPSHOT))] == ["Reset", "Snapshot"]


def test_a_trigger_is_repeated_until_its_run_is_known_and_then_resumed() -> None:
    state = new_state(TRIGGER)
    first, second = state.next_request(), state.next_request()
    assert (first.method, first.headers) == ("POST", second.headers)
    assert len(first.headers["Idempotency-Key"]) == 36
    list(state.receive(lines(SNAPSHOT)))
    third = state.next_request()
    assert (third.method, third.path, third.body) == ("GET", f"{KEY.path}/stream", None)
    assert "Idempotency-Key" not in third.headers


def test_a_server_that_stores_no_keys_gets_a_run_id_instead() -> None:
    state = new_state(TRIGGER)
    state.next_request()
    problem = {"type": "urn:stream-server:problem:read-replica", "detail": "This is a read replica"}
    state.record_response(Response(501, {}, json.dumps(problem).encode()))
    assert state.next_wait(0.0) == 0.0
    request = state.next_request()
    assert "Idempotency-Key" not in request.headers
    assert ("if_exists", "attach") in request.query
    assert (request.body or {})["dag_run_id"].startswith("manual__")
    assert state.next_request().body == request.body
    # A key of the caller must not be dropped.
    keyed = new_state(trigger_with_key("mine"))
    with pytest.raises(ServerError, match="read replica"):
        keyed.record_response(Response(501, {}, json.dumps(problem).encode()))


def open_unrepeatable() -> StreamState:
    """Return a stream that triggers a run which the caller has named, on a server that stores no keys."""
    state = new_state(trigger_with_key(None, run_id="mine"))
    state.next_request()
    problem = {"type": "urn:stream-server:problem:read-replica", "detail": "This is a read replica"}
    state.record_response(Response(501, {}, json.dumps(problem).encode()))
    request = state.next_request()
    assert ("if_exists", "attach") not in request.query
    assert "Idempotency-Key" not in request.headers
    return state


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_trigger_that_may_have_started_a_run_is_not_repeated(status: int) -> None:
    state = open_unrepeatable()
    state.record_response(Response(429, {}, b"later"))
    with pytest.raises(ServerError):
        state.record_response(Response(status, {}, b"retry"))
    # The run is known: the stream is opened with a GET.
    list(state.receive(lines(SNAPSHOT)))
    state.next_request()
    state.record_response(Response(status, {}, b"retry"))


@pytest.mark.parametrize("frames", [(), (close(4001, reconnect=True),)])
def test_a_trigger_without_a_frame_of_its_run_is_not_repeated(frames: tuple[dict[str, Any], ...]) -> None:
    state = open_unrepeatable()
    state.record_response(OPENED)
    list(state.receive(lines(*frames)))
    with pytest.raises(StreamClosed if frames else ConnectionLost):
        state.record_end_of_body(1.0)
    refused = ConnectionLost("ConnectError: refused")
    refused.may_have_arrived = False
    state.record_loss(refused, 1.0)
    with pytest.raises(ConnectionLost, match="ReadError"):
        state.record_loss(ConnectionLost("ReadError: "), 1.0)


def test_a_trigger_that_was_interrupted_is_not_repeated() -> None:
    state = open_unrepeatable()
    state.record_interruption(1.0)
    with pytest.raises(ConnectionLost, match="may have arrived"):
        state.next_request()
    other = new_state(TRIGGER)
    first = other.next_request()
    other.record_interruption(1.0)
    assert other.next_request() == first


def test_an_interruption_does_not_start_the_patience_again() -> None:
    state = new_state()
    for now in (0.0, 3.0):
        state.start(now)
        state.next_request()
        state.record_interruption(now)
    state.record_loss(ConnectionLost("refused"), 5.0)
    with pytest.raises(ConnectionLost, match="for 5 s"):
        state.next_wait(5.0)


def trigger_with_key(key: str | None, run_id: str | None = None) -> Request:
    return trigger_request(
        "d",
        {},
        run_id=run_id,
        logical_date=None,
        note=None,
        body=None,
        idempotency_key=key,
        attach=False,
        options=OPTIONS,
    )


def test_a_close_frame_sets_the_wait_and_ends_the_connection() -> None:
    state = new_state()
    state.next_request()
    list(state.receive(lines(SNAPSHOT, close(4001, reconnect=True, retry_ms=1500), chunk(0))))
    assert state.is_connection_over
    assert state.next_wait(0.0) == 1.5


def test_frames_before_a_final_close_are_yielded() -> None:
    state = new_state()
    state.next_request()
    frames = state.receive(lines(chunk(5), close(4503, reconnect=False)))
    assert isinstance(next(frames), Chunk)
    with pytest.raises(StreamClosed, match="code 4503"):
        next(frames)


def test_a_stream_that_has_ended_already_is_over() -> None:
    state = new_state()
    state.record_response(Response(204, {}, b""))
    assert state.is_over


def test_temporary_errors_are_retried_until_the_patience_is_exhausted() -> None:
    state = new_state()
    state.record_response(Response(503, {"retry-after": "2"}, b'{"detail": "later"}'))
    assert state.next_wait(1.0) == 2.0
    state.record_response(Response(503, {"retry-after": "2"}, b'{"detail": "later"}'))
    with pytest.raises(ServerError, match="later"):
        state.next_wait(5.0)
    with pytest.raises(Forbidden):
        state.record_response(Response(403, {}, b"no"))
    state.record_loss(ConnectionLost("ConnectError: refused"), 6.0)
    with pytest.raises(ConnectionLost, match=r"no connection to http://h for 5 s \(ConnectError: refused\)"):
        state.next_wait(6.0)


def test_a_page_of_a_proxy_is_no_stream() -> None:
    with pytest.raises(UnexpectedResponse, match="got 'text/html'"):
        new_state().record_response(Response(200, {"content-type": "text/html"}, b""))


def test_connections_without_a_frame_exhaust_the_patience() -> None:
    state = new_state()
    for frames, now in (((), 4.0), ((SNAPSHOT,), 4.5), ((), 9.0)):
        state.next_request()
        state.record_response(OPENED)
        list(state.receive(lines(*frames)))
        state.record_end_of_body(now)
        state.next_wait(now)
    with pytest.raises(ConnectionLost):
        state.next_wait(9.5)


@pytest.mark.parametrize("can_renew", [True, False])
def test_a_token_is_renewed_once(can_renew: bool) -> None:
    state = new_state(can_renew=can_renew)
    state.next_request()
    list(state.receive(lines(SNAPSHOT)))
    unauthenticated = lines(close(4501, reconnect=False))
    if not can_renew:
        with pytest.raises(TokenExpired):
            list(state.receive(unauthenticated))
        return
    assert list(state.receive(unauthenticated)) == []
    assert state.credential.needs_renewal
    state.credential.replace("another")
    state.next_request()
    with pytest.raises(TokenExpired):
        state.record_response(Response(401, {}, b"still no"))


def test_a_line_without_an_end_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_server.client.stream_state.MAX_LINE_BYTES", 10)
    with pytest.raises(StreamClosed, match="more than 10 bytes"):
        list(new_state().receive(b"x" * 11))
