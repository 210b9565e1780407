"""Retries of calls, polls of `wait`, requests and errors: without a server."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from stream_server.client import (
    Client,
    ClientError,
    Conflict,
    ConnectionLost,
    InvalidRequest,
    NoResult,
    Outcome,
    Refused,
    RequestTimeout,
    ResultTooLarge,
    ResultWithheld,
    RunFailed,
    ServerError,
    SeveralResults,
    StreamClosed,
    Throttled,
    UnexpectedResponse,
    WaitTimeout,
)
from stream_server.client.calls import CallState
from stream_server.client.credential import Credential
from stream_server.client.errors import parse_refusal
from stream_server.client.frames import Input
from stream_server.client.requests import (
    Request,
    Response,
    RunKey,
    WatchOptions,
    answer_request,
    cancel_request,
    many_runs_request,
    parse_server_url,
    trigger_request,
)
from stream_server.client.responses import decode_outcome
from stream_server.client.retries import Retries
from stream_server.client.tokens import SyncTokens
from stream_server.client.waiting import POLL_SECONDS, WaitState

KEY = RunKey("d", "a/b")
RETRY = {"retry-after": "2"}


def new_call(request: Request, *, can_renew: bool = False) -> CallState:
    return CallState(request, Credential("t0ken", can_renew=can_renew), Retries("http://h", 5.0, 0.0))


def answer(question: Input | str = "t", **options: Any) -> Request:
    defaults = {"map_index": -1, "iteration": None, "params_input": None, "asked_at": None}
    return answer_request(KEY, question, "Approve", **{**defaults, **options})


def pending() -> Outcome:
    return Outcome(dag_id="d", run_id="r", state="running")


def test_ids_are_quoted() -> None:
    assert cancel_request(KEY).target == "/api/v2/dags/d/dagRuns/a%2Fb/cancel"
    request = many_runs_request({"dag_id": "a b", "type": ["task", "run"], "tag": []})
    assert request.target == "/api/v2/stream?dag_id=a+b&type=task&type=run"


def trigger(conf: dict[str, Any] | None = None, **others: Any) -> Request:
    none = {"run_id": None, "logical_date": None, "note": None, "body": None, "idempotency_key": None, "attach": False}
    return trigger_request("d", conf, **{**none, **others}, options=WatchOptions())


def test_the_body_of_a_trigger_may_contain_its_conf() -> None:
    assert trigger().body == {"conf": {}}
    assert trigger({"a": 1}, body={"extra": 2}).body == {"conf": {"a": 1}, "extra": 2}
    assert trigger(body={"conf": {"a": 1}, "dag_run_id": "r"}).body == {"conf": {"a": 1}, "dag_run_id": "r"}


@pytest.mark.parametrize(("name", "argument"), [("conf", {"conf": {}}), ("dag_run_id", {"run_id": "r"})])
def test_a_body_that_repeats_an_argument_is_refused(name: str, argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"an argument, too: {name}$"):
        trigger(**argument, body={name: None})


@pytest.mark.parametrize("key", ["", "a\nb", " a", "a ", "ü", "\x7f", "a" * 256])
def test_an_idempotency_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="`idempotency_key` must be 1 to 255 printable ASCII"):
        trigger(idempotency_key=key)
    assert trigger(idempotency_key="a b").headers == {"Idempotency-Key": "a b"}


def test_an_answer_to_a_frame_names_the_request() -> None:
    asked_at = datetime(2026, 11, 22, 14, 21, 12, 300000, tzinfo=timezone.utc)
    frame = Input(
        dag_id="d",
        run_id="r",
        task_id="t",
        map_index=3,
        try_number=1,
        asked_at=asked_at,
        iteration=2,
        options=["Approve"],
    )
    request = answer(frame, params_input={"reason": "fine"})
    assert request.target.endswith("/taskInstances/t/input?map_index=3&iteration=2")
    assert request.body == {
        "chosen_options": ["Approve"],
        "params_input": {"reason": "fine"},
        "asked_at": "2026-11-22T14:21:12.300000Z",
    }


@pytest.mark.parametrize(
    ("url", "base"),
    [("h:8090", "http://h:8090"), ("wss://h/x/", "https://h/x"), ("http://h", "http://h")],
)
def test_servers_have_urls_or_addresses(url: str, base: str) -> None:
    assert parse_server_url(url) == base


@pytest.mark.parametrize("url", ["ftp://h", "", "http://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the server's URL must be"):
        Client(url)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(409, Conflict), (418, Refused), (422, InvalidRequest), (429, Throttled), (500, ServerError), (599, ServerError)],
)
def test_errors_have_classes_by_status(status: int, kind: type[Refused]) -> None:
    body = json.dumps({"type": "urn:x", "title": "T", "detail": "what is wrong"}).encode()
    error = parse_refusal(status, body)
    assert (type(error), error.status, error.problem_type) == (kind, status, "urn:x")
    assert str(error) == f"what is wrong (HTTP {status})"
    assert parse_refusal(status, b"<html>").problem_type == ""


def test_a_call_is_repeated_after_temporary_errors() -> None:
    call = new_call(cancel_request(KEY))
    assert call.accept(Response(200, {}, b""))
    assert not call.accept(Response(503, RETRY, b""))
    assert call.next_wait(0.0) == 2.0
    call.record_loss(ConnectionLost("broken"))
    assert call.next_wait(1.0) <= 0.5
    for status in (400, 404, 501):
        with pytest.raises(Refused):
            call.accept(Response(status, {}, b""))
    assert not call.accept(Response(504, {}, b"slow"))
    with pytest.raises(ServerError, match="slow"):
        call.next_wait(5.0)
    call.record_loss(RequestTimeout("ReadTimeout: "))
    with pytest.raises(RequestTimeout, match="no connection to http://h for 5 s"):
        call.next_wait(5.0)


def test_an_answer_is_repeated_only_if_it_has_not_arrived() -> None:
    call = new_call(answer())
    lost = ConnectionLost("ConnectError: refused")
    lost.may_have_arrived = False
    call.record_loss(lost)
    assert not call.accept(Response(429, {}, b""))
    for status in (502, 503, 504):
        with pytest.raises(ServerError):
            call.accept(Response(status, {}, b""))
    with pytest.raises(ConnectionLost, match="ReadError"):
        call.record_loss(ConnectionLost("ReadError: "))


def test_a_call_renews_its_token_once() -> None:
    call = new_call(cancel_request(KEY), can_renew=True)
    assert not call.accept(Response(401, {}, b""))
    assert (call.credential.needs_renewal, call.next_wait(0.0)) == (True, 0.0)
    call.credential.replace("another")
    with pytest.raises(Refused):
        call.accept(Response(401, {}, b""))


def test_a_token_is_renewed_once_for_all_calls() -> None:
    made = ["one", "two", "three"]
    tokens = SyncTokens(lambda: made.pop(0))
    assert (tokens.get(), tokens.get()) == ("one", "one")
    assert (tokens.renew("one"), tokens.renew("one"), made) == ("two", "two", ["three"])


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ü"])
def test_a_token_that_cannot_be_sent_is_refused_without_its_text(token: str) -> None:
    with pytest.raises(ValueError, match="a token must be printable ASCII") as refused:
        Client("http://h", token=token)
    assert not token or token not in str(refused.value)


def test_a_token_function_without_an_answer_counts_as_a_lost_connection() -> None:
    def fail() -> str:
        raise OSError("no network")

    with pytest.raises(ConnectionLost, match="no new token"):
        SyncTokens(fail).get()


def test_waits_poll_until_their_timeout() -> None:
    state = WaitState(KEY, WatchOptions(), 30.0, 0.0)
    first = state.next_poll(0.0)
    assert dict(first.request.query)["timeout"] == "20.000"
    assert first.read_timeout > POLL_SECONDS
    # The server has waited: ask again at once.
    assert state.record(pending(), Response(202, RETRY, b""), 20.0) == 0.0
    second = state.next_poll(20.0)
    assert (dict(second.request.query)["timeout"], second.patience) == ("10.000", 10.0)
    # It has not.
    assert state.record(pending(), Response(202, RETRY, b""), 20.1) == 2.0
    with pytest.raises(WaitTimeout, match=r"has no outcome after 30 s; its state is running"):
        state.record(pending(), Response(202, RETRY, b""), 30.0)
    assert state.record(Outcome(dag_id="d", run_id="r", outcome="none"), Response(200, {}, b""), 31.0) is None


def test_a_pause_of_the_server_does_not_exceed_the_timeout_of_a_wait() -> None:
    state = WaitState(KEY, WatchOptions(), 5.0, 0.0)
    state.next_poll(0.0)
    assert state.record(pending(), Response(202, {"retry-after": "600"}, b""), 1.0) == 4.0


def test_a_wait_without_an_answer_ends_with_its_timeout_or_with_the_patience() -> None:
    state = WaitState(KEY, WatchOptions(), 30.0, 0.0)
    poll = state.next_poll(20.0)
    lost, unavailable = ConnectionLost("ConnectError: refused"), parse_refusal(503, b'{"detail": "draining"}')
    for error in (lost, unavailable):
        assert state.timeout_after(error, poll, 10.0) is None
        assert "known within 30 s: " + str(error) in str(state.timeout_after(error, poll, 60.0))
    assert state.timeout_after(parse_refusal(404, b"no run"), poll, 60.0) is None


def test_a_delay_of_the_server_beyond_the_patience_ends_the_attempts_at_once() -> None:
    call = new_call(cancel_request(KEY))
    assert not call.accept(Response(503, {"retry-after": "5"}, b"draining"))
    assert call.next_wait(0.0) == 5.0
    assert not call.accept(Response(503, {"retry-after": "600"}, b"draining"))
    with pytest.raises(ServerError, match="draining"):
        call.next_wait(0.5)
    retries = Retries("http://h", 5.0, 0.0)
    retries.set_delay(600.0)
    with pytest.raises(ConnectionLost, match="permits no connection for 600 s, longer than the patience"):
        retries.next_wait(StreamClosed(4001, "draining"), 0.5)


def test_a_backoff_ends_with_the_patience() -> None:
    assert all(Retries("http://h", 5.0, 0.0).next_wait(None, 4.999) <= 0.0011 for _ in range(20))


def test_a_call_without_patience_renews_its_token_and_replaces_its_key() -> None:
    problem = b'{"type": "urn:stream-server:problem:read-replica", "detail": "read replica"}'
    call = CallState(trigger(), Credential("t0ken", can_renew=True), Retries("http://h", 0.0, 0.0))
    for refusal in (Response(401, {}, b""), Response(501, {}, problem)):
        assert not call.accept(refusal)
        assert call.next_wait(9.0) == 0.0
        if call.credential.needs_renewal:
            call.credential.replace("another")
    for refusal in (Response(401, {}, b""), Response(501, {}, problem)):
        with pytest.raises(Refused):
            call.accept(refusal)
    call.record_loss(ConnectionLost("broken"))
    with pytest.raises(ConnectionLost):
        call.next_wait(9.0)


def test_a_page_of_a_proxy_is_no_outcome() -> None:
    with pytest.raises(UnexpectedResponse, match="<html>"):
        decode_outcome(Response(200, {}, b"<html>"))


def test_values_that_msgspec_refuses_are_decoded() -> None:
    body = b'{"dag_id":"d","dag_run_id":"r","outcome":"result","results":{"a":[1e400,"\\ud800","\xff"]}}'
    outcome = decode_outcome(Response(200, {}, body))
    assert outcome.value == [float("inf"), "\ud800", "\ufffd"]
    assert "ud800" in outcome._repr_html_()
    with pytest.raises(UnexpectedResponse, match="recursion"):
        decode_outcome(Response(200, {}, b"[" * 100_000))


@pytest.mark.parametrize(
    ("members", "kind", "text"),
    [
        (
            {"outcome": "failure", "failure": {"reason": "task_failed", "task_id": "t"}},
            RunFailed,
            "task failed in task 't'",
        ),
        ({"outcome": "none", "reason": "task_skipped", "task_id": "t"}, NoResult, "task skipped"),
        ({"outcome": "pending"}, NoResult, "not known yet"),
        ({"outcome": "result"}, NoResult, "resumed after its outcome was sent"),
        ({"outcome": "result", "withheld": True}, ResultWithheld, "denies"),
        ({"outcome": "result", "results": {"b": 1, "a": 2}}, SeveralResults, "a, b"),
        ({"outcome": "result", "references": {"a": {"href": "/x", "bytes": 7}}}, ResultTooLarge, "7 bytes"),
    ],
)
def test_outcomes_without_a_value_raise(members: dict[str, Any], kind: type[ClientError], text: str) -> None:
    failure = {"map_index": -1, "try_number": 1, "state": "failed", "predicted": False}
    if "failure" in members:
        members = {**members, "failure": {**failure, **members["failure"]}}
    body = msgspec.json.encode({"dag_id": "d", "dag_run_id": "r", "state": "success", **members})
    outcome = decode_outcome(Response(200, {}, body))
    with pytest.raises(kind, match=text):
        outcome.value  # noqa: B018 # it raises
    assert "<b>d</b> r" in outcome._repr_html_()


def test_http_clients_of_other_libraries_are_refused() -> None:
    with pytest.raises(TypeError, match="`http_client` must be a client of httpx or httpx2, got object"):
        Client("http://h", http_client=object())
