"""What tasks say is told to who may read their XComs; others are told that they have said something."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Events, Frame, stream_path
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.waiting import eventually_async

MINE, YOURS = RunKey("chat", "r1"), RunKey("secret", "r1")
FORBIDDEN = refusal(403, "Forbidden")
KINDS = ("chunk", "progress")
ASKED_FOR = "type=chunk&type=progress"


@pytest.fixture
def ada() -> CallerPermissions:
    """She may read everything."""
    return CallerPermissions()


@pytest.fixture
def vera() -> CallerPermissions:
    """She may read all runs, and the XComs of `secret` alone."""
    return CallerPermissions(unsigned_jwt(sub="vera"), xcoms_of={"chat": FORBIDDEN})


@pytest.fixture
def permissions(stub: AirflowStub, ada: CallerPermissions, vera: CallerPermissions) -> StubPermissions:
    stub.instead = door = StubPermissions(ada, vera)
    return door


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    version = await airflow.add_dag("secret", CHAIN, {"clean_up": False})
    for key, dag_version in ((MINE, stub.version), (YOURS, version)):
        await airflow.trigger(key, dag_version, list(CHAIN))
        await airflow.set_run(key, "running")
        await airflow.start_task(key, "answer")
    async with running_server(settings(airflow_url=stub.url, auth_cache="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has begun")
        yield server


class Hearing:
    """A client of any stream, which hears what tasks say."""

    def __init__(self, source: Events | ClientConnection) -> None:
        self._source = source
        self.cursor: str | None = None

    async def next(self) -> Frame:
        if isinstance(self._source, Events):
            frame = await self._source.next()
            self.cursor = self._source.ids[-1] or self.cursor
        else:
            frame = json.loads(await self._source.recv())
            self.cursor = frame.get("cursor", self.cursor)
        return frame

    async def until(self, kind: str) -> Frame:
        frame = await self.next()
        while frame["type"] != kind:
            frame = await self.next()
        return frame

    async def said(self, count: int) -> list[tuple[str, object]]:
        """Return the DAG and the value of what is said next; `None` for what is withheld."""
        frames: list[Frame] = []
        while len(frames) < count:
            frame = await self.next()
            if frame["type"] in KINDS:
                assert ("value" in frame) is not frame.get("withheld", False)
                frames.append(frame)
        return [(frame["dag_id"], frame.get("value")) for frame in frames]


@asynccontextmanager
async def over_http(
    server: RunningServer, caller: CallerPermissions, path: str, cursor: str | None = None
) -> AsyncIterator[Hearing]:
    headers = {**caller.headers, **({"Last-Event-ID": cursor} if cursor else {})}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client,
        client.stream("GET", path) as response,
    ):
        assert response.status_code == 200
        yield Hearing(Events(response))


@asynccontextmanager
async def over_websocket(
    server: RunningServer, caller: CallerPermissions, path: str, subscribe: object = None
) -> AsyncIterator[Hearing]:
    address = server.url.replace("http", "ws", 1) + path
    async with connect(address, additional_headers=caller.headers, proxy=None) as connection:
        if subscribe is not None:
            await connection.send(json.dumps({"op": "subscribe", "id": "a", **subscribe}))  # type: ignore[dict-item]
        yield Hearing(connection)


@asynccontextmanager
async def listening(server: RunningServer, caller: CallerPermissions, way: str) -> AsyncIterator[Hearing]:
    """Begin to hear what tasks of `chat` say, and maybe those of `secret`."""
    ways = {
        "run, SSE": lambda: over_http(server, caller, stream_path(MINE)),
        "run, WebSocket": lambda: over_websocket(server, caller, stream_path(MINE)),
        "run, multiplex": lambda: over_websocket(server, caller, "/api/v2/stream", MINE._asdict()),
        "DAG, SSE": lambda: over_http(server, caller, f"/api/v2/dags/chat/stream?{ASKED_FOR}"),
        "all, SSE": lambda: over_http(server, caller, f"/api/v2/stream?{ASKED_FOR}"),
        "all, multiplex": lambda: over_websocket(server, caller, "/api/v2/stream", {"type": KINDS}),
    }
    begun = "snapshot" if way.startswith("run") else "ack" if "multiplex" in way else "ping"
    async with ways[way]() as hearing:
        await hearing.until(begun)
        yield hearing


WAYS = ("run, SSE", "run, WebSocket", "run, multiplex", "DAG, SSE", "all, SSE", "all, multiplex")


@pytest.mark.parametrize("way", WAYS)
async def test_what_tasks_say_is_told_to_who_may_read_their_xcoms(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, vera: CallerPermissions, way: str
) -> None:
    progress = {"fraction": 0.5, "text": "writing"}
    async with listening(auth_server, ada, way) as hers, listening(auth_server, vera, way) as others:
        await airflow.emit_output(MINE, "answer", 0, {"progress": 0.5, "text": "writing"}, "because")
        assert await hers.said(2) == [("chat", progress), ("chat", "because")]
        assert await others.said(2) == [("chat", None), ("chat", None)]


async def test_of_many_runs_each_dag_is_decided_by_itself(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, stub: AirflowStub
) -> None:
    async with listening(auth_server, vera, "all, SSE") as hearing:
        assert not any("xcomEntries" in asked.target for asked in stub.asked), "nothing is due yet"
        await airflow.emit_output(MINE, "answer", 0, "mine")
        await airflow.emit_output(YOURS, "answer", 0, "yours")
        assert await hearing.said(2) == [("chat", None), ("secret", "yours")]
        cursor = hearing.cursor
        await airflow.emit_output(YOURS, "answer", 1, "more")
        await hearing.said(1)
    await airflow.emit_output(MINE, "answer", 1, "still mine")
    async with over_http(auth_server, vera, f"/api/v2/stream?{ASKED_FOR}", cursor) as back:
        assert await back.said(2) == [("secret", "more"), ("chat", None)]


async def test_who_does_not_want_what_tasks_say_has_nothing_asked_about_it(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, stub: AirflowStub
) -> None:
    async with over_http(auth_server, vera, "/api/v2/stream") as hearing:
        await hearing.until("ping")
        await airflow.emit_output(MINE, "answer", 0, "mine")
        await airflow.set_run(MINE, "failed")
        await hearing.until("run")
    assert [asked.target for asked in stub.asked if "xcomEntries" in asked.target] == []


async def test_those_of_many_runs_go_on_when_the_permission_comes_and_goes(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions
) -> None:
    async with listening(auth_server, vera, "all, SSE") as hearing:
        index = 0

        async def hear(expected: str | None) -> None:
            nonlocal index
            value: object = ""
            while value != expected:
                await airflow.emit_output(MINE, "answer", index, "word")
                index += 1
                ((_, value),) = await hearing.said(1)

        await hear(None)
        vera.xcoms_of.clear()
        await hear("word")
        vera.forbid_xcoms()
        await hear(None)


@pytest.mark.parametrize("before", ["may", "may not"])
async def test_the_stream_of_a_dag_begins_anew_with_another_permission(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, before: str
) -> None:
    of_chat = {"chat": FORBIDDEN}
    vera.xcoms_of = {} if before == "may" else of_chat
    async with listening(auth_server, vera, "DAG, SSE") as hearing:
        cursor = hearing.cursor
        vera.xcoms_of = of_chat if before == "may" else {}
        close = await hearing.until("close")
        assert (close["code"], close["reconnect"]) == (4007, True)
    await airflow.emit_output(MINE, "answer", 0, "because")
    async with over_http(auth_server, vera, f"/api/v2/dags/chat/stream?{ASKED_FOR}", cursor) as back:
        assert await back.said(1) == [("chat", None if before == "may" else "because")]


async def test_who_came_when_more_was_allowed_does_not_keep_it(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    async with listening(auth_server, ada, "run, SSE") as first:
        ada.forbid_xcoms()
        # Streams of hers that come later know better, before or after the first is asked for.
        with anyio.fail_after(DEADLINE):
            for number in itertools.count():
                async with listening(auth_server, ada, "run, SSE") as second:
                    await airflow.emit_output(MINE, "answer", number, "because")
                    frame = await second.next()
                    while frame["type"] not in {*KINDS, "close"}:
                        frame = await second.next()
                if frame.get("withheld"):
                    assert "value" not in frame
                    break
        async with listening(auth_server, ada, "run, SSE") as third:
            assert (await first.until("close"))["code"] == 4007
            assert await third.said(1) == [("chat", None)]


async def test_the_result_is_told_again_when_it_may_be_read(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    path = stream_path(MINE, "?until=run")
    ada.forbid_xcoms()
    async with over_http(auth_server, ada, path) as hearing:
        await airflow.emit_output(MINE, "answer", 0, "be", "cause")
        assert await hearing.said(2) == [("chat", None)] * 2
        await airflow.push(MINE, "answer", "because")
        assert (await hearing.until("result"))["results"] == {}
        ada.xcoms = None
        assert (await hearing.until("close"))["code"] == 4007
    async with over_http(auth_server, ada, path, hearing.cursor) as hearing:
        assert (await hearing.next())["reason"] == "access_changed"
        assert (await hearing.next())["type"] == "snapshot"
        assert await hearing.said(2) == [("chat", "be"), ("chat", "cause")]
        assert (await hearing.until("result"))["results"] == {"answer": "because"}
    # It is told once; and when the permission goes, what was told stands.
    async with over_http(auth_server, ada, path, hearing.cursor) as hearing:
        assert (await hearing.next())["type"] == "resumed"
        ada.forbid_xcoms()
        assert (await hearing.until("close"))["code"] == 4007
    async with over_http(auth_server, ada, path, hearing.cursor) as hearing:
        assert (await hearing.next())["type"] == "resumed"
        await airflow.set_run(MINE, "success")
        assert [(await hearing.next())["type"] for _ in range(2)] == ["run", "end"]


async def test_who_missed_no_values_goes_on_when_the_permission_comes(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    ada.forbid_xcoms()
    async with over_http(auth_server, ada, stream_path(MINE)) as hearing:
        await hearing.until("snapshot")
        ada.xcoms = None
        await hearing.until("close")
    await airflow.push(MINE, "answer", "because")
    async with over_http(auth_server, ada, stream_path(MINE), hearing.cursor) as hearing:
        assert (await hearing.next())["type"] == "resumed"
        assert (await hearing.until("result"))["results"] == {"answer": "because"}
