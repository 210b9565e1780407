"""The client against a real WebSocket server on loopback that follows a script for each connection."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response

from stream_server.client import (
    ConnectionLost,
    Message,
    Refused,
    StreamClosed,
    TokenExpired,
    UnexpectedResponse,
    follow,
)
from stream_server.client.retries import is_temporary, parse_retry_after, retry_delay_of_close
from stream_server.client.websocket_stream import stream_url
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import (
    AnyFrame,
    Close,
    End,
    Ping,
    Refusal,
    Reset,
    Resumed,
    RunInfo,
    Snapshot,
    TaskTransition,
)
from stream_server.protocol.wire import Wire
from support.builders import KEY, types
from support.scripted_server import Script, ScriptedServer, abort_after, response, scripted_server, send_frames

RUN = KEY._asdict()
SNAPSHOT = Snapshot(
    **RUN,
    run=RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0),
    tasks=[],
    result_tasks=[],
)
END = End(**RUN, state="success", outcome="result")


async def follow_types(seen: ScriptedServer, **options: Any) -> list[str]:
    return types([message.frame for message in await follow_messages(seen, **options)])


async def follow_messages(seen: ScriptedServer, **options: Any) -> list[Message]:
    return [message async for message in follow(seen.url, *KEY, **{"patience": 5.0, **options})]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8090", "ws://h:8090"),
        ("https://h", "wss://h"),
        ("ws://h", "ws://h"),
        ("wss://h/", "wss://h"),
        ("h:8090", "ws://h:8090"),
        ("http://h/airflow/", "ws://h/airflow"),
    ],
)
def test_stream_url_uses_the_address_of_the_server(url: str, address: str) -> None:
    assert stream_url(url, "d", "r") == f"{address}/api/v2/dags/d/dagRuns/r/stream?until=result"


def test_stream_url_quotes_ids() -> None:
    url = stream_url("http://h", "team.dag", "manual__2026-01-01T00:00:00+00:00", ["a b", "c"], "run")
    assert url == (
        "ws://h/api/v2/dags/team.dag/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00/stream"
        "?result=a+b&result=c&until=run"
    )


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.text(min_size=1)))
def test_any_ids_can_be_parsed_from_the_url(dag_id: str, run_id: str, results: list[str]) -> None:
    parts = urlsplit(stream_url("http://h", dag_id, run_id, results))
    assert [unquote(part) for part in parts.path.split("/")[4:]] == [dag_id, "dagRuns", run_id, "stream"]
    assert parse_qsl(parts.query) == [*(("result", task_id) for task_id in results), ("until", "result")]


async def test_all_frames_are_yielded_unchanged_up_to_the_end() -> None:
    async with scripted_server(send_frames(SNAPSHOT, END)) as seen:
        received = await follow_messages(seen)
    assert [message.frame for message in received] == [SNAPSHOT, END]
    assert [message.text for message in received] == [Wire(SNAPSHOT).text, Wire(END).text]


async def test_the_request_has_options_and_credentials() -> None:
    async with scripted_server(send_frames(END)) as seen:
        await follow_messages(seen, results=["ask", "answer"], until="run", token="t0ken")
        await follow_messages(seen)
    one, two = seen.requests
    assert one.path.endswith("/stream?result=ask&result=answer&until=run")
    assert one.headers["Authorization"] == "Bearer t0ken"
    assert "Authorization" not in two.headers


async def test_the_client_stops_after_the_end_frame() -> None:
    async def keep_open(connection: ServerConnection) -> None:
        await send_frames(END)(connection)
        await connection.wait_closed()

    async with scripted_server(keep_open) as seen:
        assert await asyncio.wait_for(follow_types(seen), 1) == ["end"]
    assert len(seen.requests) == 1


async def test_pings_are_not_yielded() -> None:
    async with scripted_server(send_frames(Ping(), SNAPSHOT, Ping(), END)) as seen:
        assert await follow_types(seen) == ["snapshot", "end"]


async def test_a_frame_that_cannot_be_decoded_is_an_error() -> None:
    async with scripted_server(lambda one: one.send(f'{{"type":"chunk","value":{"[" * 100_000}')) as seen:
        with pytest.raises(UnexpectedResponse, match="a frame cannot be decoded"):
            await follow_messages(seen)


async def test_ignores_unknown_frame_types() -> None:
    async with scripted_server(send_frames(SNAPSHOT, '{"type":"chunk","value":1}', END)) as seen:
        assert await follow_types(seen) == ["snapshot", "end"]


@pytest.mark.parametrize("text", ["<html>", "", "[]", '{"type":'])
async def test_messages_that_are_not_frames_are_ignored(text: str) -> None:
    async with scripted_server(send_frames(SNAPSHOT, text, END)) as seen:
        assert await follow_types(seen) == ["snapshot", "end"]


async def test_a_broken_connection_is_opened_again() -> None:
    async with scripted_server(abort_after(SNAPSHOT), abort_after(), send_frames(SNAPSHOT, END)) as seen:
        assert await follow_types(seen) == ["snapshot", "snapshot", "end"]
    assert len(seen.requests) == 3


def task(seq: int) -> TaskTransition:
    return TaskTransition(
        **RUN,
        seq=seq,
        at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        task_id="t",
        map_index=-1,
        try_number=1,
        state="queued",
        previous_state=None,
    )


def at(frame: AnyFrame, xmax: int) -> str:
    """Return a frame that is the last of its batch."""
    return Wire(frame, ResumeToken(JournalPosition("e", xmax, xmax))).text


async def test_a_broken_stream_resumes_without_duplicates() -> None:
    resumed = Resumed(**RUN, since="e.5:5:")
    async with scripted_server(
        abort_after(at(SNAPSHOT, 5), task(1), task(2)),
        abort_after(resumed, task(1), at(task(2), 7), task(3)),
        send_frames(resumed, task(3), at(END, 9)),
    ) as seen:
        received = await follow_messages(seen)
    assert [getattr(message.frame, "seq", None) for message in received] == [None, 1, 2, None, 3, None, None]
    queries = [parse_qs(urlsplit(request.path).query) for request in seen.requests]
    assert [query.get("cursor") for query in queries] == [None, ["e.5:5:"], ["e.7:7:"]]


async def test_frames_after_a_reset_are_yielded_again() -> None:
    reset = Reset(**RUN, reason="cursor_expired")
    async with scripted_server(
        abort_after(at(SNAPSHOT, 5), task(1)), send_frames(reset, SNAPSHOT, task(1), END)
    ) as seen:
        assert await follow_types(seen) == ["snapshot", "task", "reset", "snapshot", "task", "end"]


async def test_a_connection_that_closes_before_the_end_is_opened_again() -> None:
    async with scripted_server(send_frames(SNAPSHOT), send_frames(SNAPSHOT, END)) as seen:
        assert await follow_types(seen) == ["snapshot", "snapshot", "end"]


async def test_a_close_frame_sets_the_retry_delay() -> None:
    close = Close(code=4001, reason="The server is shutting down", reconnect=True, retry_ms=150)
    began = asyncio.get_running_loop().time()
    async with scripted_server(send_frames(SNAPSHOT, close), send_frames(SNAPSHOT, END)) as seen:
        assert await follow_types(seen) == ["snapshot", "snapshot", "end"]
    assert asyncio.get_running_loop().time() - began >= 0.15


@pytest.mark.parametrize(
    ("retry_ms", "delay"), [(None, None), (0, 0.0), (150, 0.15), (10**12, 3600.0), (10**400, 3600.0)]
)
def test_the_retry_delay_of_a_close_is_at_most_an_hour(retry_ms: int | None, delay: float | None) -> None:
    assert retry_delay_of_close(Close(code=4001, reason="again", reconnect=True, retry_ms=retry_ms)) == delay


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        ("0", 0.0),
        ("007", 7.0),
        ("99999999", 3600.0),
        ("9" * 5000, 3600.0),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("nan", None),
        ("\u00b2", None),
    ],
)
def test_the_retry_delay_of_a_refusal_is_at_most_an_hour(retry_after: str, delay: float | None) -> None:
    assert parse_retry_after(retry_after) == delay


async def test_a_refusal_after_the_handshake_is_raised_too() -> None:
    refusal = Refusal(id="", problem="urn:x", title="Unauthenticated", status=401, detail="Authenticate first")
    close = Close(code=4501, reason="Unauthenticated", reconnect=False)
    async with scripted_server(send_frames(refusal, close)) as seen:
        with pytest.raises(Refused, match="Authenticate first") as refused:
            await follow_messages(seen)
    assert refused.value.status == 401


async def test_final_close_raises_stream_closed() -> None:
    async with scripted_server(
        send_frames(SNAPSHOT, Close(code=4500, reason="No longer allowed", reconnect=False))
    ) as seen:
        with pytest.raises(StreamClosed, match=r"No longer allowed \(code 4500\)") as closed:
            await follow_messages(seen)
    assert (closed.value.code, closed.value.reason) == (4500, "No longer allowed")
    assert len(seen.requests) == 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (json.dumps({"title": "Run not found", "detail": "DAG 'd' has no run 'r'"}), "DAG 'd' has no run 'r'"),
        ("<h1>Not here</h1>", "<h1>Not here</h1>"),
        ('["detail"]', '["detail"]'),
        ("", "the server gave no reason"),
    ],
)
async def test_a_refusal_is_final_and_has_a_reason(body: str, detail: str) -> None:
    async with scripted_server(response(HTTPStatus.NOT_FOUND, body)) as seen:
        with pytest.raises(Refused) as refused:
            await follow_messages(seen)
    assert (refused.value.status, refused.value.detail) == (404, detail)
    assert str(refused.value) == f"{detail} (HTTP 404)"
    assert len(seen.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 422, 501])
async def test_permanent_errors_are_not_retried(status: int) -> None:
    async with scripted_server(response(HTTPStatus(status), "no")) as seen:
        with pytest.raises(Refused):
            await follow_messages(seen)
    assert len(seen.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_temporary_errors_are_retried_after_the_servers_delay(status: int) -> None:
    async with scripted_server(response(HTTPStatus(status), "", Retry_After="0"), send_frames(END)) as seen:
        assert await follow_types(seen) == ["end"]


async def test_unreachable_server_raises_connection_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    unreachable = ScriptedServer()
    unreachable.url = f"http://127.0.0.1:{port}"
    with pytest.raises(ConnectionLost, match=f"no connection to ws://127.0.0.1:{port} for 0.05 s") as lost:
        await follow_messages(unreachable, patience=0.05, token="t0ken")
    assert "t0ken" not in str(lost.value)
    assert isinstance(lost.value.__cause__, OSError)


async def test_retries_end_when_the_server_stays_unavailable() -> None:
    async with scripted_server(response(HTTPStatus.SERVICE_UNAVAILABLE, "", Retry_After="0")) as seen:
        with pytest.raises(ConnectionLost, match="HTTP 503"):
            await follow_messages(seen, patience=0.05)
    assert len(seen.requests) > 1


async def test_each_frame_restarts_the_time_limit() -> None:
    close = Close(code=4001, reason="again", reconnect=True, retry_ms=100)
    async with scripted_server(*[send_frames(SNAPSHOT, close)] * 4, send_frames(END)) as seen:
        assert await follow_types(seen, patience=0.3) == ["snapshot"] * 4 + ["end"]


async def test_a_connection_that_breaks_after_long_silence_is_opened_again() -> None:
    """Only pings arrive during a long task; they restart the time limit, too."""

    async def silent(connection: ServerConnection) -> None:
        await send_frames(SNAPSHOT)(connection)
        for _ in range(10):
            await send_frames(Ping())(connection)
            await asyncio.sleep(0.03)
        connection.transport.abort()

    async with scripted_server(silent, send_frames(SNAPSHOT, END)) as seen:
        assert await follow_types(seen, patience=0.2) == ["snapshot", "snapshot", "end"]


@pytest.mark.parametrize("status", [520, 521, 522, 523, 524, 530, 500, 507, 599])
def test_any_server_error_may_be_temporary(status: int) -> None:
    assert is_temporary(status)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 410, 421, 422, 501, 505])
def test_other_statuses_are_final(status: int) -> None:
    assert not is_temporary(status)


async def test_statuses_of_a_cdn_are_retried() -> None:
    timed_out = Response(522, "Connection Timed Out", Headers({"Content-Length": "0", "Connection": "close"}), b"")
    async with scripted_server(timed_out, timed_out, send_frames(SNAPSHOT, END)) as seen:
        assert await follow_types(seen) == ["snapshot", "end"]
    assert len(seen.requests) == 3


UNAUTHORIZED = response(HTTPStatus.UNAUTHORIZED, json.dumps({"detail": "Signature has expired"}))
EXPIRING = Close(code=4006, reason="The token expires", reconnect=True, retry_ms=0)
EXPIRED = Close(code=4501, reason="The token has expired", reconnect=False)


def tokens_of(seen: ScriptedServer) -> list[str]:
    return [request.headers["Authorization"].removeprefix("Bearer ") for request in seen.requests]


class TokenSource:
    """Returns the tokens `t1`, `t2`, …; first raises the errors."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self._count = 0

    async def __call__(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        self._count += 1
        return f"t{self._count}"


@pytest.mark.parametrize(
    "end", [send_frames(at(SNAPSHOT, 1), EXPIRING), send_frames(at(SNAPSHOT, 1), EXPIRED)], ids=["expiring", "expired"]
)
async def test_a_stream_continues_with_a_new_token_at_its_cursor(end: Script) -> None:
    async with scripted_server(end, send_frames(Resumed(since="x", **RUN), END)) as seen:
        types_seen = await follow_types(seen, token="t0", renew_token=TokenSource())
    assert types_seen == ["snapshot", "resumed", "end"]
    assert tokens_of(seen) == ["t0", "t1"]
    assert "cursor" in parse_qs(urlsplit(seen.requests[1].path).query)


async def test_a_refused_token_is_renewed() -> None:
    async with scripted_server(abort_after(SNAPSHOT), UNAUTHORIZED, send_frames(END)) as seen:
        assert await follow_types(seen, token="t0", renew_token=TokenSource()) == ["snapshot", "end"]
    assert tokens_of(seen) == ["t0", "t0", "t1"]


async def test_a_token_that_is_refused_at_once_is_not_renewed_again() -> None:
    async with scripted_server(UNAUTHORIZED) as seen:
        with pytest.raises(Refused, match="Signature has expired"):
            await follow_messages(seen, token="t0", renew_token=TokenSource())
    assert tokens_of(seen) == ["t0", "t1"]


async def test_a_renewal_without_an_answer_is_tried_again() -> None:
    async with scripted_server(send_frames(SNAPSHOT, EXPIRED), send_frames(END)) as seen:
        renew = TokenSource(ConnectionError("Airflow does not answer"))
        assert await follow_types(seen, token="t0", renew_token=renew) == ["snapshot", "end"]


async def test_a_refused_renewal_ends_the_stream() -> None:
    async with scripted_server(send_frames(SNAPSHOT, EXPIRED)) as seen:
        with pytest.raises(LookupError, match="wrong password"):
            await follow_messages(seen, token="t0", renew_token=TokenSource(LookupError("wrong password")))


@pytest.mark.parametrize("second", [UNAUTHORIZED, send_frames(EXPIRED)], ids=["handshake", "close"])
async def test_an_expired_token_that_cannot_be_renewed_is_named(second: Script | Response) -> None:
    async with scripted_server(abort_after(SNAPSHOT), second) as seen:
        with pytest.raises(TokenExpired, match="the token has expired or was revoked"):
            await follow_messages(seen, token="t0")
