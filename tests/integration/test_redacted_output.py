"""Task output is sent to callers that may read XComs; others get frames without values."""

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

CHAT_RUN, SECRET_RUN = RunKey("chat", "r1"), RunKey("secret", "r1")
FORBIDDEN = refusal(403, "Forbidden")
KINDS = ("chunk", "progress")
OUTPUT_TYPES = "type=chunk&type=progress"


@pytest.fixture
def ada() -> CallerPermissions:
    """A caller that may read everything."""
    return CallerPermissions()


@pytest.fixture
def vera() -> CallerPermissions:
    """A caller that may read all runs, and the XComs of `secret` only."""
    return CallerPermissions(unsigned_jwt(sub="vera"), xcoms_of={"chat": FORBIDDEN})


@pytest.fixture
def permissions(stub: AirflowStub, ada: CallerPermissions, vera: CallerPermissions) -> StubPermissions:
    stub.instead = permissions_stub = StubPermissions(ada, vera)
    return permissions_stub


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions, airflow: AirflowSql
) -> AsyncIterator[RunningServer]:
    version = await airflow.add_dag("secret", CHAIN, {"clean_up": False})
    for key, dag_version in ((CHAT_RUN, stub.version), (SECRET_RUN, version)):
        await airflow.trigger(key, dag_version, list(CHAIN))
        await airflow.set_run(key, "running")
        await airflow.start_task(key, "answer")
    async with running_server(settings(airflow_url=stub.url, auth_cache="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


class OutputClient:
    """A client of any stream that reads task output."""

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

    async def read_output(self, count: int) -> list[tuple[str, object]]:
        """Return DAG and value of the next output frames; the value is `None` if redacted."""
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
) -> AsyncIterator[OutputClient]:
    headers = {**caller.headers, **({"Last-Event-ID": cursor} if cursor else {})}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client,
        client.stream("GET", path) as response,
    ):
        assert response.status_code == 200
        yield OutputClient(Events(response))


@asynccontextmanager
async def over_websocket(
    server: RunningServer, caller: CallerPermissions, path: str, subscribe: object = None
) -> AsyncIterator[OutputClient]:
    address = server.url.replace("http", "ws", 1) + path
    async with connect(address, additional_headers=caller.headers, proxy=None) as connection:
        if subscribe is not None:
            await connection.send(json.dumps({"op": "subscribe", "id": "a", **subscribe}))  # type: ignore[dict-item]
        yield OutputClient(connection)


@asynccontextmanager
async def open_client(server: RunningServer, caller: CallerPermissions, kind: str) -> AsyncIterator[OutputClient]:
    """Open a stream with the output of `chat`, and maybe of `secret`."""
    openers = {
        "run, SSE": lambda: over_http(server, caller, stream_path(CHAT_RUN)),
        "run, WebSocket": lambda: over_websocket(server, caller, stream_path(CHAT_RUN)),
        "run, multiplex": lambda: over_websocket(server, caller, "/api/v2/stream", CHAT_RUN._asdict()),
        "DAG, SSE": lambda: over_http(server, caller, f"/api/v2/dags/chat/stream?{OUTPUT_TYPES}"),
        "all, SSE": lambda: over_http(server, caller, f"/api/v2/stream?{OUTPUT_TYPES}"),
        "all, multiplex": lambda: over_websocket(server, caller, "/api/v2/stream", {"type": KINDS}),
    }
    first_type = "snapshot" if kind.startswith("run") else "ack" if "multiplex" in kind else "ping"
    async with openers[kind]() as client:
        await client.until(first_type)
        yield client


STREAM_KINDS = ("run, SSE", "run, WebSocket", "run, multiplex", "DAG, SSE", "all, SSE", "all, multiplex")


@pytest.mark.parametrize("kind", STREAM_KINDS)
async def test_output_is_redacted_without_xcom_rights(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, vera: CallerPermissions, kind: str
) -> None:
    progress = {"fraction": 0.5, "text": "writing"}
    async with open_client(auth_server, ada, kind) as allowed, open_client(auth_server, vera, kind) as redacted:
        await airflow.emit_output(CHAT_RUN, "answer", 0, {"progress": 0.5, "text": "writing"}, "because")
        assert await allowed.read_output(2) == [("chat", progress), ("chat", "because")]
        assert await redacted.read_output(2) == [("chat", None), ("chat", None)]


async def test_the_firehose_redacts_output_per_dag(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, stub: AirflowStub
) -> None:
    async with open_client(auth_server, vera, "all, SSE") as client:
        assert not any("xcomEntries" in request.target for request in stub.received), "no output has been sent yet"
        await airflow.emit_output(CHAT_RUN, "answer", 0, "mine")
        await airflow.emit_output(SECRET_RUN, "answer", 0, "yours")
        assert await client.read_output(2) == [("chat", None), ("secret", "yours")]
        cursor = client.cursor
        await airflow.emit_output(SECRET_RUN, "answer", 1, "more")
        await client.read_output(1)
    await airflow.emit_output(CHAT_RUN, "answer", 1, "more of chat")
    async with over_http(auth_server, vera, f"/api/v2/stream?{OUTPUT_TYPES}", cursor) as resumed:
        assert await resumed.read_output(2) == [("secret", "more"), ("chat", None)]


async def test_xcom_rights_are_not_requested_without_output(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, stub: AirflowStub
) -> None:
    async with over_http(auth_server, vera, "/api/v2/stream") as client:
        await client.until("ping")
        await airflow.emit_output(CHAT_RUN, "answer", 0, "mine")
        await airflow.set_run(CHAT_RUN, "failed")
        await client.until("run")
    assert [request.target for request in stub.received if "xcomEntries" in request.target] == []


async def test_the_firehose_continues_when_the_permission_changes(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions
) -> None:
    async with open_client(auth_server, vera, "all, SSE") as client:
        index = 0

        async def read_until(expected: str | None) -> None:
            nonlocal index
            value: object = ""
            while value != expected:
                await airflow.emit_output(CHAT_RUN, "answer", index, "word")
                index += 1
                ((_, value),) = await client.read_output(1)

        await read_until(None)
        vera.xcoms_of.clear()
        await read_until("word")
        vera.forbid_xcoms()
        await read_until(None)


@pytest.mark.parametrize("before", ["may", "may not"])
async def test_the_stream_of_a_dag_closes_when_the_permission_changes(
    auth_server: RunningServer, airflow: AirflowSql, vera: CallerPermissions, before: str
) -> None:
    of_chat = {"chat": FORBIDDEN}
    vera.xcoms_of = {} if before == "may" else of_chat
    async with open_client(auth_server, vera, "DAG, SSE") as client:
        cursor = client.cursor
        vera.xcoms_of = of_chat if before == "may" else {}
        close = await client.until("close")
        assert (close["code"], close["reconnect"]) == (4007, True)
    await airflow.emit_output(CHAT_RUN, "answer", 0, "because")
    async with over_http(auth_server, vera, f"/api/v2/dags/chat/stream?{OUTPUT_TYPES}", cursor) as resumed:
        assert await resumed.read_output(1) == [("chat", None if before == "may" else "because")]


async def test_a_revoked_permission_ends_an_older_stream(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    async with open_client(auth_server, ada, "run, SSE") as first:
        ada.forbid_xcoms()
        # A later stream gets the new answer from Airflow, before or after the first is revalidated.
        with anyio.fail_after(DEADLINE):
            for number in itertools.count():
                async with open_client(auth_server, ada, "run, SSE") as second:
                    await airflow.emit_output(CHAT_RUN, "answer", number, "because")
                    frame = await second.next()
                    while frame["type"] not in {*KINDS, "close"}:
                        frame = await second.next()
                if frame.get("withheld"):
                    assert "value" not in frame
                    break
        async with open_client(auth_server, ada, "run, SSE") as third:
            assert (await first.until("close"))["code"] == 4007
            assert await third.read_output(1) == [("chat", None)]


@pytest.mark.parametrize("can_read_inputs", [True, False])
async def test_the_result_is_sent_again_when_it_becomes_readable(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions, can_read_inputs: bool
) -> None:
    path = stream_path(CHAT_RUN, "?until=run")
    ada.forbid_xcoms()
    if not can_read_inputs:
        ada.forbid_inputs()
    async with over_http(auth_server, ada, path) as client:
        await airflow.emit_output(CHAT_RUN, "answer", 0, "be", "cause")
        assert await client.read_output(2) == [("chat", None)] * 2
        await airflow.push(CHAT_RUN, "answer", "because")
        assert (await client.until("result"))["results"] == {}
        ada.xcoms = None
        assert (await client.until("close"))["code"] == 4007
    async with over_http(auth_server, ada, path, client.cursor) as client:
        assert (await client.next())["reason"] == "access_changed"
        assert (await client.next())["type"] == "snapshot"
        assert await client.read_output(2) == [("chat", "be"), ("chat", "cause")]
        assert (await client.until("result"))["results"] == {"answer": "because"}
    # The result is sent once; when the permission is revoked, it is not retracted.
    async with over_http(auth_server, ada, path, client.cursor) as client:
        assert (await client.next())["type"] == "resumed"
        ada.forbid_xcoms()
        assert (await client.until("close"))["code"] == 4007
    async with over_http(auth_server, ada, path, client.cursor) as client:
        assert (await client.next())["type"] == "resumed"
        await airflow.set_run(CHAT_RUN, "success")
        assert [(await client.next())["type"] for _ in range(2)] == ["run", "end"]


async def test_a_stream_without_missed_values_resumes_when_the_permission_is_granted(
    auth_server: RunningServer, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    ada.forbid_xcoms()
    async with over_http(auth_server, ada, stream_path(CHAT_RUN)) as client:
        await client.until("snapshot")
        ada.xcoms = None
        await client.until("close")
    await airflow.push(CHAT_RUN, "answer", "because")
    async with over_http(auth_server, ada, stream_path(CHAT_RUN), client.cursor) as client:
        assert (await client.next())["type"] == "resumed"
        assert (await client.until("result"))["results"] == {"answer": "because"}
