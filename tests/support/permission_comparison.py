"""Compares what Airflow and the server show a caller, for every kind of request."""

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
from support.airflow_callers import Access
from support.streams import Frame, frames_of

SECONDS = 60.0

INVALID_TOKEN = Access(403, "Invalid JWT token")

Headers = Mapping[str, str]


class AirflowAccess:
    """What Airflow shows a caller."""

    def __init__(self, url: str, headers: Headers) -> None:
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=dict(headers), timeout=SECONDS)

    async def run(self, key: RunKey) -> Access:
        access = await self._get(f"/dags/{key.dag_id}/dagRuns/{key.run_id}")
        if access.status != 200:
            return access
        xcoms = await self._get(f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances/~/xcomEntries?limit=1")
        return Access(200, None, xcoms.status == 200)

    async def runs(self, key: RunKey) -> Access:
        return await self._get(f"/dags/{key.dag_id}/dagRuns?limit=1")

    async def dags(self, _key: RunKey) -> Access:
        return await self._get("/dags/~/dagRuns?limit=1")

    async def wait(self, key: RunKey, query: str) -> Access:
        return await self._get(f"/dags/{key.dag_id}/dagRuns/{key.run_id}/wait?interval=1{query}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _get(self, path: str) -> Access:
        try:
            answer = await self._client.get(path)
        except httpx.TransportError:
            # Airflow cut the connection after an internal error.
            return Access(500)
        access = _without_values(answer)
        # Airflow answers 403 to a token that it does not accept; the server answers 401, as RFC 9110 has it.
        return access._replace(status=401) if access == INVALID_TOKEN else access


class ServerAccess:
    """What the server shows a caller, for every kind of request."""

    def __init__(self, url: str, headers: Headers) -> None:
        self._url, self._headers = url, dict(headers)
        # A kept-alive connection may be closed at the moment when it is used again.
        once = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=self._headers, timeout=SECONDS, limits=once)

    async def sse(self, key: RunKey) -> Access:
        return await self._stream(key, "text/event-stream")

    async def ndjson(self, key: RunKey) -> Access:
        return await self._stream(key, "application/x-ndjson")

    async def result(self, key: RunKey) -> Access:
        answer = await self._client.get(f"{path_of(key)}/result?timeout=0")
        return _access_of_response(answer, lambda body: not body.get("withheld"))

    async def wait(self, key: RunKey, query: str = "") -> Access:
        return _without_values(await self._client.get(f"{path_of(key)}/wait?interval=1{query}"))

    async def websocket(self, key: RunKey) -> Access:
        async def read_frames(connection: ClientConnection) -> list[Frame]:
            if not self._headers:
                await connection.send("{}")
            return await frames_of(connection)

        return await self._upgrade(f"{path_of(key)}/stream", read_frames)

    async def multiplex(self, key: RunKey) -> Access:
        async def read_frames(connection: ClientConnection) -> list[Frame]:
            subscribe = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id}
            await connection.send(json.dumps(subscribe))
            frames: list[Frame] = []
            while not frames or frames[-1]["type"] not in {"end", "error"}:
                frames.append(json.loads(await asyncio.wait_for(connection.recv(), SECONDS)))
            return frames

        return await self._upgrade("/stream", read_frames)

    async def ticket(self, key: RunKey) -> Access:
        """Request a ticket, and use nothing else from then on."""
        path = f"/api/v2{path_of(key)}/stream"
        given = await self._client.post("/stream/tickets", json={"paths": [path]})
        if not given.is_success:
            return Access(given.status_code, _detail(given.content))
        query = {"ticket": given.json()["ticket"]}
        async with httpx.AsyncClient(base_url=self._url, timeout=SECONDS) as stranger:
            return _access_of_lines(await stranger.get(path, params=query, headers={"Accept": "application/x-ndjson"}))

    async def graph(self, key: RunKey) -> Access:
        return _without_values(await self._client.get(f"{path_of(key)}/graph"))

    async def trigger(self, dag_id: str) -> Access:
        body = {"conf": {"teardown_seconds": 0}}
        answer = await self._client.post(
            f"/dags/{dag_id}/dagRuns?wait_for_completion=true&timeout=60s",
            json=body,
            headers={"Accept": "application/json"},
        )
        return _access_of_response(answer, lambda body: not body.get("withheld"))

    async def runs(self, key: RunKey) -> Access:
        return await self._head(f"/dags/{key.dag_id}/stream")

    async def dags(self, _key: RunKey) -> Access:
        return await self._head("/stream")

    async def listed(self, _key: RunKey) -> Access:
        return _without_values(await self._client.get("/stream/runs?limit=1"))

    async def close(self) -> None:
        await self._client.aclose()

    async def _stream(self, key: RunKey, media_type: str) -> Access:
        answer = await self._client.get(f"{path_of(key)}/stream", headers={"Accept": media_type})
        if media_type == "text/event-stream" and answer.is_success:
            frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            return _access_of_frames(frames)
        return _access_of_lines(answer)

    async def _head(self, path: str) -> Access:
        async with self._client.stream("GET", path, headers={"Accept": "application/x-ndjson"}) as answer:
            if answer.is_success:
                return Access(200)
            return Access(answer.status_code, _detail(await answer.aread()))

    async def _upgrade(self, path: str, read_frames: Callable[[ClientConnection], Awaitable[list[Frame]]]) -> Access:
        address = f"{self._url}/api/v2{path}".replace("http", "ws", 1)
        try:
            async with connect(address, additional_headers=self._headers, proxy=None, close_timeout=1) as connection:
                return _access_of_frames(await read_frames(connection))
        except InvalidStatus as error:
            return Access(error.response.status_code, _detail(bytes(error.response.body or b"")))


def path_of(key: RunKey) -> str:
    return f"/dags/{key.dag_id}/dagRuns/{key.run_id}"


def _detail(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError):
        return None


def _without_values(answer: httpx.Response) -> Access:
    return Access(answer.status_code, None if answer.is_success else _detail(answer.content))


def _access_of_lines(answer: httpx.Response) -> Access:
    if answer.is_success:
        return _access_of_frames([json.loads(line) for line in answer.text.splitlines()])
    return Access(answer.status_code, _detail(answer.content))


def _access_of_response(answer: httpx.Response, values: Callable[[dict[str, Any]], bool]) -> Access:
    if answer.is_success:
        return Access(200, None, values(answer.json()))
    return Access(answer.status_code, _detail(answer.content))


def _access_of_frames(frames: list[Frame]) -> Access:
    error = next((frame for frame in frames if frame["type"] == "error"), None)
    if error is not None:
        return Access(error["status"], error["detail"])
    if frames[-1]["type"] == "close" and frames[-1]["code"] == 4003:
        # An EventSource would not reconnect after the 503 that others get.
        return Access(503)
    result = next((frame for frame in frames if frame["type"] == "result"), None)
    return Access(200, None, None if result is None else not result.get("withheld") and bool(result["results"]))


def differs(way: str, expected: Access, actual: Access, *, is_anonymous: bool) -> bool:
    """Whether the server showed something else than Airflow.

    An error of Airflow counts as no answer, and a 404 has the server's own text. A WebSocket without credentials gets
    a request to authenticate by message.
    """
    status = 503 if expected.status >= 500 else expected.status
    if actual.status != status or actual.values != expected.values:
        return True
    has_own_text = status in {404, 503} or (is_anonymous and way in {"websocket", "multiplex"})
    return not has_own_text and actual.detail != expected.detail


@asynccontextmanager
async def query_both(
    airflow_url: str, url: str, headers: Headers, finished_run: RunKey
) -> AsyncIterator[list[tuple[str, Access, Access]]]:
    """Send every kind of request to Airflow and to the server; return both results."""
    airflow, ours = AirflowAccess(airflow_url, headers), ServerAccess(url, headers)
    pairs = []
    try:
        for key in (finished_run, RunKey(finished_run.dag_id, "nowhere")):
            expected = await airflow.run(key)
            ways = (ours.sse, ours.ndjson, ours.websocket, ours.multiplex, ours.result, ours.ticket)
            for way, actual in zip(ways, await asyncio.gather(*(way(key) for way in ways)), strict=True):
                pairs.append((f"{way.__name__} {key.run_id}", expected, actual))
            pairs.append((f"graph {key.run_id}", expected._replace(values=None), await ours.graph(key)))
            for query in ("", "&result=answer", "&result="):
                expected, actual = await asyncio.gather(airflow.wait(key, query), ours.wait(key, query))
                pairs.append((f"wait {key.run_id} {query}", expected, actual))
        for theirs, many in ((airflow.runs, ours.runs), (airflow.dags, ours.dags), (airflow.dags, ours.listed)):
            expected, actual = await asyncio.gather(theirs(finished_run), many(finished_run))
            pairs.append((many.__name__, expected, actual))
        yield pairs
    finally:
        await airflow.close()
        await ours.close()
