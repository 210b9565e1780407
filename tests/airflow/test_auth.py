"""Who may see what is what Airflow itself says to the same credential, on every way to ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from stream_server.demo.rest import AirflowRest
from stream_server.demo.server import Server
from stream_server.demo.stack import DemoStack
from stream_server.run_state import RunKey
from support.airflow_callers import Denied, Told, token
from support.streams import Frame, frames_of
from support.waiting import eventually_async

SECONDS = 60.0
DAG = "chat_answer"
NOWHERE = RunKey(DAG, "nowhere")

Headers = Mapping[str, str]


@pytest.fixture(scope="module")
def server(stack: DemoStack) -> Iterator[Server]:
    """A server that asks Airflow, and often."""
    server = stack.replica(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def over(airflow: AirflowRest) -> RunKey:
    """A run that has answered."""
    key = RunKey(DAG, airflow.trigger(DAG, {"teardown_seconds": 0}))
    assert airflow.finish(*key) == "success"
    return key


@pytest.fixture(scope="module")
def waiting(airflow: AirflowRest) -> RunKey:
    """A run that never begins."""
    body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "dag_run_id": "waiting"}
    assert airflow.request("POST", f"/dags/{DAG}/dagRuns", json=body).is_success
    return RunKey(DAG, "waiting")


@pytest.fixture
def denied(denials: Denied) -> Iterator[Denied]:
    yield denials
    denials.set()


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


def revoked(airflow_url: str) -> str:
    gone = token("leaver", "admin")
    assert httpx.get(f"{airflow_url}/auth/logout", headers=bearer(gone)).status_code in {200, 307, 404}
    assert httpx.get(f"{airflow_url}/api/v2/auth/logout", headers=bearer(gone)).status_code == 307
    return gone


def callers(airflow_url: str) -> dict[str, Headers]:
    roles = {role: bearer(token(role, role)) for role in ("admin", "op", "user", "viewer")}
    return {
        **roles,
        "without a role": bearer(token("nobody", None)),
        "of an unknown role": bearer(token("stranger", "stranger")),
        "without RUN": bearer(token("no_runs", "admin")),
        "without XCOM": bearer(token("no_xcoms", "admin")),
        "without the DAG": bearer(token("no_dag", "admin")),
        "by cookie": {"Cookie": f"theme=dark; _token={token('admin', 'admin')}"},
        "by cookie, without XCOM": {"Cookie": f"_token={token('no_xcoms', 'admin')}"},
        "by a cookie that has expired": {"Cookie": f"_token={token('admin', 'admin', lifetime=-60)}"},
        "by other cookies": {"Cookie": "theme=dark"},
        "nobody": {},
        "expired": bearer(token("admin", "admin", lifetime=-60)),
        "forged": bearer(token("admin", "admin", secret="another-secret" * 6)),
        "no token": bearer("nonsense"),
        "basic": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "logged out": bearer(revoked(airflow_url)),
    }


DENIED = {"no_runs": ["RUN"], "no_xcoms": ["XCOM"], "no_dag": [DAG]}


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

    async def runs(self) -> Told:
        return await self._ask(f"/dags/{DAG}/dagRuns?limit=1")

    async def dags(self) -> Told:
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
        return Told(answer.status_code, None if answer.is_success else _detail(answer.content))


class Ours:
    """What we say to a caller, on every way to ask."""

    def __init__(self, url: str, headers: Headers) -> None:
        self._url, self._headers = url, dict(headers)
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=self._headers, timeout=SECONDS)

    async def sse(self, key: RunKey) -> Told:
        return await self._stream(key, "text/event-stream")

    async def ndjson(self, key: RunKey) -> Told:
        return await self._stream(key, "application/x-ndjson")

    async def result(self, key: RunKey) -> Told:
        answer = await self._client.get(f"{_path(key)}/result?timeout=0")
        return _told(answer, lambda body: not body.get("withheld"))

    async def wait(self, key: RunKey, query: str = "") -> Told:
        answer = await self._client.get(f"{_path(key)}/wait?interval=1{query}")
        return Told(answer.status_code, None if answer.is_success else _detail(answer.content))

    async def websocket(self, key: RunKey) -> Told:
        async def told(connection: ClientConnection) -> list[Frame]:
            if not self._headers:
                await connection.send("{}")
            return await frames_of(connection)

        return await self._upgrade(f"{_path(key)}/stream", told)

    async def multiplex(self, key: RunKey) -> Told:
        async def told(connection: ClientConnection) -> list[Frame]:
            subscribe = {"op": "subscribe", "id": "a", "dag_id": key.dag_id, "run_id": key.run_id}
            await connection.send(json.dumps(subscribe))
            frames: list[Frame] = []
            while not frames or frames[-1]["type"] not in {"end", "error"}:
                frames.append(json.loads(await asyncio.wait_for(connection.recv(), SECONDS)))
            return frames

        return await self._upgrade("/stream", told)

    async def trigger(self, _key: RunKey) -> Told:
        body = {"conf": {"teardown_seconds": 0}}
        answer = await self._client.post(
            f"/dags/{DAG}/dagRuns?wait_for_completion=true&timeout=60s",
            json=body,
            headers={"Accept": "application/json"},
        )
        return _told(answer, lambda body: not body.get("withheld"))

    async def runs(self) -> Told:
        return await self._head(f"/dags/{DAG}/stream")

    async def dags(self) -> Told:
        return await self._head("/stream")

    async def close(self) -> None:
        await self._client.aclose()

    async def _stream(self, key: RunKey, media_type: str) -> Told:
        answer = await self._client.get(f"{_path(key)}/stream", headers={"Accept": media_type})
        if media_type == "text/event-stream" and answer.is_success:
            frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            return _of_frames(frames)
        if answer.is_success:
            return _of_frames([json.loads(line) for line in answer.text.splitlines()])
        return Told(answer.status_code, _detail(answer.content))

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


def _path(key: RunKey) -> str:
    return f"/dags/{key.dag_id}/dagRuns/{key.run_id}"


def _detail(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError):
        return None


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


async def test_everybody_is_told_what_airflow_would_tell_him(
    stack: DemoStack, server: Server, over: RunKey, denied: Denied
) -> None:
    denied.set(**DENIED)
    deviations, asked = [], 0
    for name, headers in callers(stack.airflow_url).items():
        introduced = "Authorization" not in headers
        async with said_and_told(stack.airflow_url, server.url, headers, over) as pairs:
            for way, said, told in pairs:
                asked += 1
                if differs(way.split()[0], said, told, introduced=introduced):
                    deviations.append((name, way, said, told))
    assert deviations == []
    assert asked == 19 * 18


@asynccontextmanager
async def said_and_told(
    airflow_url: str, url: str, headers: Headers, over: RunKey
) -> AsyncIterator[list[tuple[str, Told, Told]]]:
    """Ask Airflow and us in every way, and give both answers."""
    airflow, ours = Airflow(airflow_url, headers), Ours(url, headers)
    pairs = []
    try:
        for key in (over, NOWHERE):
            said = await airflow.run(key)
            ways = (ours.sse, ours.ndjson, ours.websocket, ours.multiplex, ours.result)
            for way, told in zip(ways, await asyncio.gather(*(way(key) for way in ways)), strict=True):
                pairs.append((f"{way.__name__} {key.run_id}", said, told))
            for query in ("", "&result=answer", "&result="):
                said, told = await asyncio.gather(airflow.wait(key, query), ours.wait(key, query))
                pairs.append((f"wait {key.run_id} {query}", said, told))
        for many in ("runs", "dags"):
            said, told = await asyncio.gather(getattr(airflow, many)(), getattr(ours, many)())
            pairs.append((many, said, told))
        yield pairs
    finally:
        await airflow.close()
        await ours.close()


@pytest.mark.parametrize(
    ("name", "status", "values"),
    [
        ("admin", 200, True),
        ("user", 200, True),
        ("no_xcoms", 200, False),
        ("viewer", 403, None),
        ("no_runs", 403, None),
    ],
)
async def test_who_triggers_is_told_what_he_may_read(
    stack: DemoStack, server: Server, denied: Denied, name: str, status: int, *, values: bool | None
) -> None:
    denied.set(**DENIED)
    role = name if name in {"admin", "user", "viewer"} else "admin"
    ours = Ours(server.url, bearer(token(name, role)))
    told = await ours.trigger(NOWHERE)
    await ours.close()
    assert (told.status, told.values) == (status, values)


class Streams:
    """A stream of every kind, each with what it ends with: a close code, or a status; 0 for one that is broken off."""

    def __init__(self, url: str, headers: Headers, key: RunKey) -> None:
        self._url, self._headers, self._key = url, dict(headers), key
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v2", headers=self._headers, timeout=2 * SECONDS)
        self._begun = asyncio.Semaphore(0)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[list[asyncio.Task[int]]]:
        """Open them all, and close those that are left at the end."""
        run = f"{_path(self._key)}/stream"
        one = {"op": "subscribe", "id": "a", "dag_id": self._key.dag_id, "run_id": self._key.run_id}
        work = [
            self._http(run, "text/event-stream"),
            self._http(run, "application/x-ndjson"),
            self._websocket(run),
            self._websocket("/stream", one),
            self._result(),
            self._wait(),
            self._http("/stream", "application/x-ndjson"),
            self._http(f"/dags/{DAG}/stream", "text/event-stream"),
            self._websocket("/stream", {"op": "subscribe", "id": "a"}),
        ]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            for _ in tasks:
                await asyncio.wait_for(self._begun.acquire(), SECONDS)
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
                    self._begin(last)
                    last = line
            return int(json.loads(last[last.index("{") :])["code"])

    async def _websocket(self, path: str, say: object = None) -> int:
        address = f"{self._url}/api/v2{path}".replace("http", "ws", 1)
        async with connect(address, additional_headers=self._headers, proxy=None) as connection:
            if say is not None:
                await connection.send(json.dumps(say))
            last = ""
            while True:
                frame = json.loads(await asyncio.wait_for(connection.recv(), 2 * SECONDS))
                if frame["type"] == "close":
                    return int(frame["code"])
                self._begin(last)
                last = frame["type"]

    async def _result(self) -> int:
        self._begin("")
        return (await self._client.get(f"{_path(self._key)}/result?timeout=120s")).status_code

    async def _wait(self) -> int:
        last = ""
        try:
            async with self._client.stream("GET", f"{_path(self._key)}/wait?interval=1") as response:
                async for line in response.aiter_lines():
                    self._begin(last)
                    last = line
        except httpx.RemoteProtocolError:
            return 0
        return response.status_code

    def _begin(self, last: str) -> None:
        if not last:
            self._begun.release()


async def within(tasks: list[asyncio.Task[int]], seconds: float) -> list[int]:
    return await asyncio.wait_for(asyncio.gather(*tasks), seconds)


OUT = [4501, 4501, 4501, 4501, 401, 0, 4501, 4501, 4501]


async def test_who_logs_out_is_out_everywhere(stack: DemoStack, server: Server, waiting: RunKey) -> None:
    headers = bearer(token("leaver", "admin"))
    async with Streams(server.url, headers, waiting).opened() as tasks, httpx.AsyncClient() as client:
        assert (await client.get(f"{stack.airflow_url}/api/v2/auth/logout", headers=headers)).status_code == 307
        assert await within(tasks, SECONDS) == OUT


async def test_who_has_a_token_no_more_is_out_everywhere(server: Server, waiting: RunKey) -> None:
    # Airflow allows for 10 s of difference between clocks.
    async with Streams(server.url, bearer(token("briefly", "admin", lifetime=5)), waiting).opened() as tasks:
        assert await within(tasks, SECONDS) == OUT


async def test_who_loses_a_permission_loses_what_it_was_for(server: Server, waiting: RunKey, denied: Denied) -> None:
    async with Streams(server.url, bearer(token("loser", "admin")), waiting).opened() as tasks:
        denied.set(loser=["XCOM"])
        of_run = [0, 1, 2, 3, 4, 5]
        assert await within([tasks[number] for number in of_run], SECONDS) == [4007, 4007, 4007, 4007, 503, 0]
        assert not any(task.done() for task in tasks[6:])
    denied.set()
    async with Streams(server.url, bearer(token("loser", "admin")), waiting).opened() as tasks:
        denied.set(loser=["RUN"])
        assert await within(tasks, SECONDS) == [4503, 4503, 4503, 4503, 403, 0, 4503, 4503, 4503]


async def test_streams_of_many_runs_tell_what_the_caller_may_read(
    stack: DemoStack, server: Server, airflow: AirflowRest, denied: Denied
) -> None:
    denied.set(half=["chat_answer"])
    heard: dict[str, set[str]] = {}

    async def hear(name: str) -> None:
        heard[name] = set()
        async with (
            httpx.AsyncClient(
                base_url=server.url, headers=dict(bearer(token(name, "viewer"))), timeout=SECONDS
            ) as client,
            client.stream("GET", "/api/v2/stream", headers={"Accept": "application/x-ndjson"}) as response,
        ):
            async for line in response.aiter_lines():
                frame = json.loads(line)
                if frame["type"] == "ping":
                    begun.release()
                else:
                    heard[name].add(frame["dag_id"])

    begun = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(hear(name)) for name in ("half", "whole")]
    try:
        await begun.acquire()
        await begun.acquire()
        first = RunKey("chat_answer", await asyncio.to_thread(airflow.trigger, "chat_answer", {"teardown_seconds": 0}))
        second = RunKey("mapped_squares", await asyncio.to_thread(airflow.trigger, "mapped_squares"))
        for key in (first, second):
            await asyncio.to_thread(airflow.finish, *key)
        await eventually_async(
            lambda: "mapped_squares" in heard["half"] and heard["whole"] >= {"chat_answer", "mapped_squares"},
            SECONDS,
            "both hear what they may read",
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert heard["half"] == {"mapped_squares"}
