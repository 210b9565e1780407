"""Clients of one run over each transport, which record every frame with its cursor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK, InvalidStatus

from stream_server.domain.run_state import RunKey
from support.run_knowledge import RunKnowledge, Tables
from support.streams import DEADLINE, Events, Frame, stream_path
from support.waiting import eventually_async

Transport = Literal["sse", "ndjson", "websocket", "multiplex"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


class Target(NamedTuple):
    """A server, and how to ask it."""

    name: str
    url: str
    headers: dict[str, str]
    client: httpx.AsyncClient


class Way(NamedTuple):
    """A server and a transport."""

    target: Target
    transport: Transport

    def __repr__(self) -> str:
        return f"{self.target.name}, {self.transport}"


class Received(NamedTuple):
    """A frame, without its cursor."""

    frame: Frame
    cursor: str | None


ReceivedFrames: TypeAlias = AsyncGenerator[Received, None]


class StreamRefused(Exception):
    """The server refused the stream."""

    def __init__(self, way: Way, status: int, problem: str) -> None:
        super().__init__(f"{way!r}: {status} {problem}")
        self.status = status
        self.problem = problem


async def receive(way: Way, key: RunKey, options: dict[str, str], cursor: str | None = None) -> ReceivedFrames:
    """Yield the frames of a stream up to its end, without pings.

    Raises:
        StreamRefused: The server refused the stream.
    """
    readers = {"sse": _receive_http, "ndjson": _receive_http, "websocket": _receive_websocket}
    reader = readers.get(way.transport, _receive_multiplexed)
    async with aclosing(reader(way, key, options, cursor)) as received:
        async for one in received:
            assert one.frame["type"] != "close", f"{way!r}: {one.frame}"
            if one.frame["type"] != "ping":
                yield one


class RunWatcher:
    """A client that follows a run until its stream ends.

    Args:
        way: Server and transport.
        key: The run.
        options: `until`, `result` and `confirm`.
        after: What it knows, and the cursor with which it resumes.
    """

    def __init__(
        self, way: Way, key: RunKey, options: dict[str, str], after: tuple[RunKnowledge, str] | None = None
    ) -> None:
        self.name = f"{way!r}{'' if after is None else ', resumed'}"
        self.received: list[Received] = []
        self.start, cursor = (RunKnowledge(), None) if after is None else after
        self.knowledge = self.start.copy()
        self._task = asyncio.create_task(self._follow(receive(way, key, options, cursor)))

    @property
    def frames(self) -> list[Frame]:
        return [one.frame for one in self.received]

    @property
    def is_done(self) -> bool:
        """Whether its stream has ended. Raises what it failed with."""
        if self._task.done():
            self._task.result()
        return self._task.done()

    async def knows_the_same(self, other: RunWatcher) -> None:
        """Wait until it knows the same as another client, but for the cause of a failure."""
        await self._wait_until(lambda: self.knowledge.essentials == other.knowledge.essentials, other.knowledge)

    async def knows(self, tables: Tables) -> None:
        """Wait until it knows what Airflow's tables have."""
        await self._wait_until(lambda: self.knowledge.tables == tables, tables)

    async def has_started(self) -> None:
        """Wait for its first frame, or the end of its stream."""
        await eventually_async(lambda: bool(self.received) or self.is_done, DEADLINE)

    async def has_ended(self) -> None:
        """Wait for the end of its stream."""
        await asyncio.wait_for(asyncio.shield(self._task), DEADLINE)
        assert self.knowledge.end is not None, f"{self.name}: {self._describe()}"

    def points(self) -> list[tuple[RunKnowledge, str]]:
        """Return what it knew at each frame with a cursor, and that cursor; not at the end, which is final."""
        knowledge, found = self.start.copy(), []
        for frame, cursor in self.received:
            knowledge.apply(frame)
            if cursor is not None and frame["type"] != "end":
                found.append((knowledge.copy(), cursor))
        return found

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _wait_until(self, condition: Callable[[], bool], expected: object) -> None:
        try:
            await eventually_async(lambda: condition() or self.is_done, DEADLINE)
            assert condition()
        except AssertionError as error:
            known = f"{self.name}\nknows    {self.knowledge}\nexpected {expected}\n{self._describe()}"
            raise AssertionError(known) from error

    def _describe(self) -> str:
        return "\n".join(f"  {json.dumps(frame)[:300]}" for frame in self.frames)

    async def _follow(self, received: ReceivedFrames) -> None:
        try:
            async for one in received:
                self.received.append(one)
                self.knowledge.apply(one.frame)
        finally:
            await received.aclose()


async def _receive_http(way: Way, key: RunKey, options: dict[str, str], cursor: str | None) -> ReceivedFrames:
    accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}[way.transport]
    headers = {**way.target.headers, "Accept": accept} | ({"Last-Event-ID": cursor} if cursor is not None else {})
    path = way.target.url + stream_path(key)
    async with way.target.client.stream("GET", path, params=options, headers=headers) as response:
        if response.status_code == 204:
            # The client knows the end.
            return
        if response.status_code != 200:
            raise StreamRefused(way, response.status_code, json.loads(await response.aread())["type"])
        if way.transport == "sse":
            events = Events(response)
            async for frame in events:
                yield Received(frame, events.ids[-1])
            return
        async for line in response.aiter_lines():
            if line:
                yield _without_cursor(json.loads(line))


async def _receive_websocket(way: Way, key: RunKey, options: dict[str, str], cursor: str | None) -> ReceivedFrames:
    query = str(httpx.QueryParams(options | ({"cursor": cursor} if cursor is not None else {})))
    address = way.target.url.replace("http", "ws", 1) + stream_path(key, f"?{query}")
    try:
        async with connect(address, additional_headers=way.target.headers, proxy=None, compression=None) as connection:
            while True:
                yield _without_cursor(json.loads(await connection.recv()))
    except ConnectionClosedOK:
        return
    except InvalidStatus as error:
        body = error.response.body
        raise StreamRefused(way, error.response.status_code, json.loads(body)["type"] if body else "") from error


async def _receive_multiplexed(way: Way, key: RunKey, options: dict[str, str], cursor: str | None) -> ReceivedFrames:
    address = way.target.url.replace("http", "ws", 1) + "/api/v2/stream"
    request: dict[str, Any] = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id, **options}
    if "result" in request:
        request["result"] = [request["result"]]
    async with connect(address, additional_headers=way.target.headers, proxy=None, compression=None) as connection:
        await connection.send(json.dumps(request | ({"cursor": cursor} if cursor is not None else {})))
        while True:
            frame = json.loads(await connection.recv())
            if frame["type"] == "error":
                raise StreamRefused(way, frame["status"], frame["problem"])
            if frame["type"] == "ack":
                continue
            assert frame.pop("id", "a") == "a"
            yield _without_cursor(frame)
            if frame["type"] == "end":
                return


def _without_cursor(frame: Frame) -> Received:
    cursor = frame.pop("cursor", None)
    return Received(frame, cursor)
