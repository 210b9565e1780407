"""What Airflow says to a caller, and what we tell him, on every way to ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from support.airflow_callers import Told
from support.streams import Frame, frames_of

SECONDS = 60.0

Headers = Mapping[str, str]


class Airflow:
    """What Airflow says to a caller."""

    def __init__(self, url: str, headers: Headers) -> None:
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=dict(headers), timeout=SECONDS)

    async def run(self, key: RunKey) -> Told:
        told = await self._ask(f"/dags/{key.dag_id}/dagRuns/{key.run_id}")
        if told.status != 200:
            return told
        xcoms = await self._ask(f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances/~/xcomEntries?limit=1")
        return Told(200, None, xcoms.status == 200)

    async def runs(self, key: RunKey) -> Told:
        return await self._ask(f"/dags/{key.dag_id}/dagRuns?limit=1")

    async def dags(self, _key: RunKey) -> Told:
        return await self._ask("/dags/~/dagRuns?limit=1")

    async def wait(self, key: RunKey, query: str) -> Told:
        return await self._ask(f"/dags/{key.dag_id}/dagRuns/{key.run_id}/wait?interval=1{query}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, path: str) -> Told:
        try:
            answer = await self._client.get(path)
        except httpx.TransportError:
            # It has broken off, after a fault of its own.
            return Told(500)
        return _without_values(answer)


class Ours:
    """What we say to a caller, on every way to ask."""

    def __init__(self, url: str, headers: Headers) -> None:
        self._url, self._headers = url, dict(headers)
        # A connection that is kept may be closed in the very moment in which it is used again.
        once = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=self._headers, timeout=SECONDS, limits=once)

    async def sse(self, key: RunKey) -> Told:
        return await self._stream(key, "text/event-stream")

    async def ndjson(self, key: RunKey) -> Told:
        return await self._stream(key, "application/x-ndjson")

    async def result(self, key: RunKey) -> Told:
        answer = await self._client.get(f"{path_of(key)}/result?timeout=0")
        return _told(answer, lambda body: not body.get("withheld"))

    async def wait(self, key: RunKey, query: str = "") -> Told:
        return _without_values(await self._client.get(f"{path_of(key)}/wait?interval=1{query}"))

    async def websocket(self, key: RunKey) -> Told:
        async def told(connection: ClientConnection) -> list[Frame]:
            if not self._headers:
                await connection.send("{}")
            return await frames_of(connection)

        return await self._upgrade(f"{path_of(key)}/stream", told)

    async def multiplex(self, key: RunKey) -> Told:
        async def told(connection: ClientConnection) -> list[Frame]:
            subscribe = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id}
            await connection.send(json.dumps(subscribe))
            frames: list[Frame] = []
            while not frames or frames[-1]["type"] not in {"end", "error"}:
                frames.append(json.loads(await asyncio.wait_for(connection.recv(), SECONDS)))
            return frames

        return await self._upgrade("/stream", told)

    async def ticket(self, key: RunKey) -> Told:
        """Ask for a ticket, and go on with nothing else."""
        path = f"/api/v2{path_of(key)}/stream"
        given = await self._client.post("/stream/tickets", json={"paths": [path]})
        if not given.is_success:
            return Told(given.status_code, _detail(given.content))
        query = {"ticket": given.json()["ticket"]}
        async with httpx.AsyncClient(base_url=self._url, timeout=SECONDS) as stranger:
            return _of_lines(await stranger.get(path, params=query, headers={"Accept": "application/x-ndjson"}))

    async def graph(self, key: RunKey) -> Told:
        return _without_values(await self._client.get(f"{path_of(key)}/graph"))

    async def trigger(self, dag_id: str) -> Told:
        body = {"conf": {"teardown_seconds": 0}}
        answer = await self._client.post(
            f"/dags/{dag_id}/dagRuns?wait_for_completion=true&timeout=60s",
            json=body,
            headers={"Accept": "application/json"},
        )
        return _told(answer, lambda body: not body.get("withheld"))

    async def runs(self, key: RunKey) -> Told:
        return await self._head(f"/dags/{key.dag_id}/stream")

    async def dags(self, _key: RunKey) -> Told:
        return await self._head("/stream")

    async def listed(self, _key: RunKey) -> Told:
        return _without_values(await self._client.get("/stream/runs?limit=1"))

    async def close(self) -> None:
        await self._client.aclose()

    async def _stream(self, key: RunKey, media_type: str) -> Told:
        answer = await self._client.get(f"{path_of(key)}/stream", headers={"Accept": media_type})
        if media_type == "text/event-stream" and answer.is_success:
            frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            return _of_frames(frames)
        return _of_lines(answer)

    async def _head(self, path: str) -> Told:
        async with self._client.stream("GET", path, headers={"Accept": "application/x-ndjson"}) as answer:
            if answer.is_success:
                return Told(200)
            return Told(answer.status_code, _detail(await answer.aread()))

    async def _upgrade(self, path: str, told: Callable[[ClientConnection], Awaitable[list[Frame]]]) -> Told:
        address = f"{self._url}/api/v2{path}".replace("http", "ws", 1)
        try:
            async with connect(address, additional_headers=self._headers, proxy=None, close_timeout=1) as connection:
                return _of_frames(await told(connection))
        except InvalidStatus as error:
            return Told(error.response.status_code, _detail(bytes(error.response.body or b"")))


def path_of(key: RunKey) -> str:
    return f"/dags/{key.dag_id}/dagRuns/{key.run_id}"


def _detail(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError):
        return None


def _without_values(answer: httpx.Response) -> Told:
    return Told(answer.status_code, None if answer.is_success else _detail(answer.content))


def _of_lines(answer: httpx.Response) -> Told:
    if answer.is_success:
        return _of_frames([json.loads(line) for line in answer.text.splitlines()])
    return Told(answer.status_code, _detail(answer.content))


def _told(answer: httpx.Response, values: Callable[[dict[str, Any]], bool]) -> Told:
    if answer.is_success:
        return Told(200, None, values(answer.json()))
    return Told(answer.status_code, _detail(answer.content))


def _of_frames(frames: list[Frame]) -> Told:
    error = next((frame for frame in frames if frame["type"] == "error"), None)
    if error is not None:
        return Told(error["status"], error["detail"])
    if frames[-1]["type"] == "close" and frames[-1]["code"] == 4003:
        # An EventSource would not come back after the 503 that others get.
        return Told(503)
    result = next((frame for frame in frames if frame["type"] == "result"), None)
    return Told(200, None, None if result is None else not result.get("withheld") and bool(result["results"]))


def differs(way: str, said: Told, told: Told, *, introduced: bool) -> bool:
    """Tell whether what we told is another thing than what Airflow said.

    Its faults are for us no answer, and a 404 is told in our own words; who opens a WebSocket without credentials is
    told what to say.
    """
    status = 503 if said.status >= 500 else said.status
    if told.status != status or told.values != said.values:
        return True
    in_own_words = status in {404, 503} or (introduced and way in {"websocket", "multiplex"})
    return not in_own_words and told.detail != said.detail


@asynccontextmanager
async def said_and_told(
    airflow_url: str, url: str, headers: Headers, over: RunKey
) -> AsyncIterator[list[tuple[str, Told, Told]]]:
    """Ask Airflow and us in every way, and give both answers."""
    airflow, ours = Airflow(airflow_url, headers), Ours(url, headers)
    pairs = []
    try:
        for key in (over, RunKey(over.dag_id, "nowhere")):
            said = await airflow.run(key)
            ways = (ours.sse, ours.ndjson, ours.websocket, ours.multiplex, ours.result, ours.ticket)
            for way, told in zip(ways, await asyncio.gather(*(way(key) for way in ways)), strict=True):
                pairs.append((f"{way.__name__} {key.run_id}", said, told))
            pairs.append((f"graph {key.run_id}", said._replace(values=None), await ours.graph(key)))
            for query in ("", "&result=answer", "&result="):
                said, told = await asyncio.gather(airflow.wait(key, query), ours.wait(key, query))
                pairs.append((f"wait {key.run_id} {query}", said, told))
        for theirs, many in ((airflow.runs, ours.runs), (airflow.dags, ours.dags), (airflow.dags, ours.listed)):
            said, told = await asyncio.gather(theirs(over), many(over))
            pairs.append((many.__name__, said, told))
        yield pairs
    finally:
        await airflow.close()
        await ours.close()
