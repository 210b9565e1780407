"""Streams of both clients, without a server: the HTTP library answers from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import httpx
import pytest

from stream_server.client import AsyncClient, Client, ClientError, ConnectionLost, NoResult, Outcome, WaitTimeout
from stream_server.client.frames import End
from stream_server.client.run_view import RunView

RUN = {"dag_id": "d", "run_id": "r"}
INFO = {"state": "running", "queued_at": None, "start_date": None, "end_date": None, "clear_number": 0}
SNAPSHOT = {"type": "snapshot", **RUN, "run": INFO, "tasks": [], "result_tasks": []}
Respond: TypeAlias = Callable[[httpx.Request], httpx.Response]
OPENED = {"content-type": "application/x-ndjson"}


class Script:
    """Answers requests with the next response, and records them."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses = [*responses]
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.responses.pop(0)


class Parts(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body whose frames arrive; then nothing does, until the caller cancels the read or presses Ctrl-C."""

    def __init__(self, *frames: dict[str, Any]) -> None:
        self.body = encode(*frames)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body
        await asyncio.Event().wait()

    def __iter__(self) -> Iterator[bytes]:
        yield self.body
        raise KeyboardInterrupt


@contextmanager
def sync_client(script: Respond, **options: Any) -> Iterator[Client]:
    with (
        httpx.Client(transport=httpx.MockTransport(script)) as http,
        Client("http://h", http_client=http, **options) as client,
    ):
        yield client


@asynccontextmanager
async def async_client(script: Respond, **options: Any) -> AsyncIterator[AsyncClient]:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(script)) as http,
        AsyncClient("http://h", http_client=http, **options) as client,
    ):
        yield client


def encode(*frames: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)


def stream_of(*frames: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, headers=OPENED, content=encode(*frames))


def interrupted_stream_of(*frames: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, headers=OPENED, stream=Parts(*frames))


def outcome_response(**members: Any) -> httpx.Response:
    return httpx.Response(200, json={"dag_id": "d", "dag_run_id": "r", "state": "success", **members})


def chunk(index: int, value: Any) -> dict[str, Any]:
    members = {"task_id": "t", "map_index": -1, "try_number": 1, "index": index, "value": value}
    return {"type": "chunk", **RUN, "seq": 1, "at": "2026-11-22T14:21:11.61Z", **members}


def end(outcome: str) -> dict[str, Any]:
    return {"type": "end", **RUN, "state": "success", "outcome": outcome}


async def wait_for_resumed_stream(kind: str, script: Respond) -> Outcome:
    """Return the outcome of a stream that is resumed."""
    if kind == "sync":
        with sync_client(script) as client:
            return client.stream("d", "r", results=["a"], until="run", confirm="success", cursor="c").wait()
    async with async_client(script) as asynchronous:
        return await asynchronous.stream("d", "r", results=["a"], until="run", confirm="success", cursor="c").wait()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("outcome", ["result", "failure"])
async def test_a_stream_resumed_after_its_outcome_asks_for_it(kind: str, outcome: str) -> None:
    failure = {"reason": "task_failed", "task_id": "a", "map_index": -1, "try_number": 1, "state": "failed"}
    members = {"results": {"a": 7}} if outcome == "result" else {"failure": {**failure, "predicted": False}}
    script = Script(stream_of(end(outcome)), outcome_response(outcome=outcome, **members))
    received = await wait_for_resumed_stream(kind, script)
    assert (received.outcome, received.results) == (outcome, members.get("results", {}))
    assert (received.failure is not None) is (outcome == "failure")
    params = script.requests[1].url.params
    assert script.requests[1].url.path.endswith("/dagRuns/r/result")
    assert (params["result"], params["until"], params["confirm"]) == ("a", "run", "success")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_resumed_stream_without_an_outcome_asks_nothing(kind: str) -> None:
    received = await wait_for_resumed_stream(kind, Script(stream_of(end("none"))))
    with pytest.raises(NoResult, match="ended without one"):
        received.value  # noqa: B018 # it raises


async def wait_at_once(kind: str, script: Script) -> Outcome:
    """Return the outcome of a wait without time, of a client whose token function returns a new token each time."""
    tokens = iter(["old", "new", "newer"])
    if kind == "sync":
        with sync_client(script, token=lambda: next(tokens)) as client:
            return client.wait("d", "r", timeout=0)
    async with async_client(script, token=lambda: next(tokens)) as asynchronous:
        return await asynchronous.wait("d", "r", timeout=0)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_wait_without_time_renews_its_token(kind: str) -> None:
    script = Script(httpx.Response(401), outcome_response(outcome="result", results={"a": 7}))
    assert (await wait_at_once(kind, script)).value == 7
    assert [request.headers["authorization"] for request in script.requests] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_wait_without_time_ends_with_its_timeout(kind: str) -> None:
    with pytest.raises(WaitTimeout, match="draining"):
        await wait_at_once(kind, Script(httpx.Response(503, headers={"retry-after": "600"}, text="draining")))


async def test_a_stream_continues_after_a_read_that_was_cancelled() -> None:
    script = Script(interrupted_stream_of({**SNAPSHOT, "cursor": "c:1"}), stream_of(end("none")))
    async with async_client(script) as client:
        stream = client.stream("d", "r")
        await anext(stream)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        assert [type(frame) async for frame in stream] == [End]
    assert script.requests[1].url.params["cursor"] == "c:1"


def test_a_stream_continues_after_an_interrupt_from_the_keyboard() -> None:
    script = Script(interrupted_stream_of({**SNAPSHOT, "cursor": "c:1"}), stream_of(end("none")))
    with sync_client(script) as client:
        stream = client.stream("d", "r")
        next(stream)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert [type(frame) for frame in stream] == [End]
    assert script.requests[1].url.params["cursor"] == "c:1"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_texts_are_read_once_for_each_frame_that_may_change_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    text_of = RunView.text

    def count(view: RunView) -> str:
        nonlocal reads
        reads += 1
        return str(text_of.fget(view))  # type: ignore[attr-defined]

    monkeypatch.setattr(RunView, "text", property(count))
    waiting = [{"type": "waiting", **RUN, "reason": "dag_paused"}] * 9
    frames = (SNAPSHOT, chunk(0, "a"), *waiting, chunk(1, "b"), {"type": "reset", **RUN, "reason": "cleared"}, SNAPSHOT)
    script = Script(stream_of(*frames, chunk(0, "c"), end("none")))
    if kind == "sync":
        with sync_client(script) as client:
            texts = [*client.stream("d", "r").texts()]
    else:
        async with async_client(script) as asynchronous:
            texts = [text async for text in asynchronous.stream("d", "r").texts()]
    assert texts == ["a", "ab", "", "c"]
    assert reads == 6, "two snapshots, three chunks and a reset"


@pytest.mark.parametrize("name", ["LocalProtocolError", "UnsupportedProtocol"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_request_that_can_never_be_sent_is_not_repeated(kind: str, name: str) -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise getattr(httpx, name)("illegal header")

    with pytest.raises(ClientError, match=f"cannot be sent .{name}: illegal header") as refused:
        await wait_for_resumed_stream(kind, refuse)
    assert not isinstance(refused.value, ConnectionLost)
