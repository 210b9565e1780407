"""Streams of one caller, of every kind, and the code with which each ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from support.permission_comparison import SECONDS, Headers, path_of

OUT = [4501, 4501, 4501, 4501, 401, 0, 4501, 4501, 4501]
"""Ends of `OpenStreams` when the credential is no longer valid."""

FORBIDDEN = [4503, 4503, 4503, 4503, 403, 0, 4503, 4503, 4503]
"""Ends when the caller can no longer read runs."""


class OpenStreams:
    """A stream of every kind. Each task returns a close code or a status; 0 for a connection that is cut."""

    def __init__(self, url: str, headers: Headers, key: RunKey) -> None:
        self._url, self._headers, self._key = url, dict(headers), key
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=self._headers, timeout=2 * SECONDS)
        self._started = asyncio.Semaphore(0)

    @asynccontextmanager
    async def open_all(self) -> AsyncIterator[list[asyncio.Task[int]]]:
        """Open all streams; close the rest at the end."""
        run = f"{path_of(self._key)}/stream"
        one = {"op": "subscribe", "id": "a", "dag_id": self._key.dag_id, "run_id": self._key.run_id}
        work = [
            self._http(run, "text/event-stream"),
            self._http(run, "application/x-ndjson"),
            self._websocket(run),
            self._websocket("/stream", one),
            self._result(),
            self._wait(),
            self._http("/stream", "application/x-ndjson"),
            self._http(f"/dags/{self._key.dag_id}/stream", "text/event-stream"),
            self._websocket("/stream", {"op": "subscribe", "id": "a"}),
        ]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            for _ in tasks:
                await asyncio.wait_for(self._started.acquire(), SECONDS)
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.aclose()

    async def _http(self, path: str, media_type: str) -> int:
        async with self._client.stream("GET", path, headers={"Accept": media_type}) as response:
            last = ""
            async for line in response.aiter_lines():
                if "{" in line:
                    self._start(last)
                    last = line
            return int(json.loads(last[last.index("{") :])["code"])

    async def _websocket(self, path: str, operation: object = None) -> int:
        address = f"{self._url}/api/v2{path}".replace("http", "ws", 1)
        async with connect(address, additional_headers=self._headers, proxy=None) as connection:
            if operation is not None:
                await connection.send(json.dumps(operation))
            last = ""
            while True:
                frame = json.loads(await asyncio.wait_for(connection.recv(), 2 * SECONDS))
                if frame["type"] == "close":
                    return int(frame["code"])
                self._start(last)
                last = frame["type"]

    async def _result(self) -> int:
        self._start("")
        return (await self._client.get(f"{path_of(self._key)}/result?timeout=120s")).status_code

    async def _wait(self) -> int:
        last = ""
        try:
            async with self._client.stream("GET", f"{path_of(self._key)}/wait?interval=1") as response:
                async for line in response.aiter_lines():
                    self._start(last)
                    last = line
        except httpx.RemoteProtocolError:
            return 0
        return response.status_code

    def _start(self, last: str) -> None:
        if not last:
            self._started.release()


async def ends_within(tasks: list[asyncio.Task[int]], seconds: float) -> list[int]:
    return await asyncio.wait_for(asyncio.gather(*tasks), seconds)


@asynccontextmanager
async def follow_all_runs(url: str, callers: Mapping[str, Headers]) -> AsyncIterator[dict[str, set[str]]]:
    """Have callers follow all runs; yields the DAG ids that each caller has received, by name."""
    dag_ids: dict[str, set[str]] = {name: set() for name in callers}
    begun = {name: asyncio.Event() for name in callers}

    async def follow(name: str) -> None:
        async with (
            httpx.AsyncClient(base_url=url, headers=dict(callers[name]), timeout=SECONDS) as client,
            client.stream("GET", "/api/v2/stream", headers={"Accept": "application/x-ndjson"}) as response,
        ):
            async for line in response.aiter_lines():
                frame = json.loads(line)
                begun[name].set()
                if frame["type"] != "ping":
                    dag_ids[name].add(frame["dag_id"])

    tasks = [asyncio.create_task(follow(name)) for name in callers]
    try:
        for event in begun.values():
            await asyncio.wait_for(event.wait(), SECONDS)
        yield dag_ids
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
