"""Streams behind nginx, HAProxy and Caddy as in `examples/proxies`: nothing is cut or delayed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect

from stream_server.cli.doctor.http_checks import ServerChecks
from stream_server.domain.run_state import RunKey
from stream_server.server.app import create_app
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import ANSWER, RUNS, TOKEN, WAIT
from support.certificate import Certificate, make_certificate
from support.reverse_proxies import PROXIES, Backends, ReverseProxy, reverse_proxy
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Frame, frames_of, sse, states, stream_path, types, websocket
from support.waiting import eventually_async

NDJSON = {"Accept": "application/x-ndjson"}
PING_SECONDS = 0.3
NOWHERE = "http://127.0.0.1:9"

StartProxy = Callable[..., AbstractContextManager[ReverseProxy]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=PROXIES)
def start_proxy(
    request: pytest.FixtureRequest, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> StartProxy:
    """A function that starts the proxy in front of a server; clients trust its certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))

    def start(server: str, airflow: str = NOWHERE, **how: Any) -> AbstractContextManager[ReverseProxy]:
        return reverse_proxy(request.param, Backends(airflow, server, **how), certificate)

    return start


@pytest.fixture
async def frequent_ping_server(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """A server with frequent pings."""
    async with running_server(settings(ping_interval=PING_SECONDS)) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("compressing", [False, True], ids=["plain", "compressing"])
async def test_frames_come_one_by_one(
    start_proxy: StartProxy, server: RunningServer, run: RunKey, airflow: AirflowSql, compressing: bool
) -> None:
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(start_proxy(server.url, compressing=compressing))
        events = await stack.enter_async_context(sse(proxy.url, run))
        lines = await stack.enter_async_context(_lines(proxy.url, run))
        messages = await stack.enter_async_context(_messages(proxy.url, run))
        readers = (events.next, lines, messages)
        assert [(await read())["type"] for read in readers] == ["snapshot"] * 3
        for state in ("scheduled", "queued", "running"):
            await airflow.set_task(run, "ask", state)
            # The next one is written only after this one has arrived.
            assert [(await read())["state"] for read in readers] == [state] * 3


async def test_a_stream_resumes_after_a_restart_of_the_proxy(
    start_proxy: StartProxy, server: RunningServer, run: RunKey, airflow: AirflowSql
) -> None:
    with start_proxy(server.url) as proxy:
        async with sse(proxy.url, run, "?until=run") as events:
            await events.next()
            await airflow.set_task(run, "ask", "scheduled")
            await events.until("task")
            await asyncio.to_thread(proxy.stop)
            with pytest.raises((httpx.TransportError, StopAsyncIteration)):
                await events.next()
        await eventually_async(lambda: server.hub.statistics().subscriptions == 0, what="the server has noticed")
        await airflow.set_task(run, "ask", "queued")
        await airflow.set_task(run, "ask", "running")
        await asyncio.to_thread(proxy.start)
        cursor = events.ids[-1]
        assert cursor is not None
        async with sse(proxy.url, run, "?until=run", {"Last-Event-ID": cursor}) as events:
            frames = [await events.next() for _ in range(3)]
    assert types(frames) == ["resumed", "task", "task"]
    assert states(frames, "ask") == ["queued", "running"]


async def test_reloading_nginx_cuts_no_stream(
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    server: RunningServer,
    run: RunKey,
    airflow: AirflowSql,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
    with reverse_proxy("nginx", Backends(NOWHERE, server.url), certificate) as proxy:
        async with sse(proxy.url, run) as events:
            await events.next()
            before = proxy.workers()
            proxy.reload()
            await eventually_async(lambda: proxy.workers() - before, what="a new worker has started")
            await airflow.set_task(run, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"


async def test_pings_keep_streams_open_beyond_the_proxys_timeout(
    start_proxy: StartProxy, frequent_ping_server: RunningServer, run: RunKey
) -> None:
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(start_proxy(frequent_ping_server.url, patience="1s"))
        events = await stack.enter_async_context(sse(proxy.url, run))
        readers = (
            events.next,
            await stack.enter_async_context(_lines(proxy.url, run)),
            await stack.enter_async_context(_messages(proxy.url, run)),
        )
        for expected in ["snapshot", *["ping"] * 8]:
            assert [(await read())["type"] for read in readers] == [expected] * 3


async def test_a_call_can_wait_longer_than_the_proxys_timeout(
    start_proxy: StartProxy, frequent_ping_server: RunningServer, run: RunKey, airflow: AirflowSql
) -> None:
    with start_proxy(frequent_ping_server.url, patience="1s") as proxy:
        async with (
            httpx.AsyncClient(base_url=proxy.url, timeout=30) as client,
            sse(frequent_ping_server.url, run) as clock,
        ):
            path = stream_path(run).replace("/stream", "/result?timeout=30s")
            waiting = asyncio.create_task(client.get(path))
            await eventually_async(lambda: frequent_ping_server.hub.statistics().subscriptions == 2)
            assert types([await clock.next() for _ in range(8)])[1:] == ["ping"] * 7
            await airflow.complete_chain(run)
            answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["results"] == {"answer": ANSWER}


async def test_a_disconnect_is_detected_behind_a_proxy(
    start_proxy: StartProxy, frequent_ping_server: RunningServer, run: RunKey
) -> None:
    with start_proxy(frequent_ping_server.url) as proxy:
        async with sse(proxy.url, run) as events, _messages(proxy.url, run) as message, _lines(proxy.url, run) as line:
            for read in (events.next, message, line):
                await read()
            assert frequent_ping_server.hub.statistics().subscriptions == 3
        await eventually_async(
            lambda: frequent_ping_server.hub.statistics().subscriptions == 0, what="their going was noticed"
        )

        async with httpx.AsyncClient(base_url=proxy.url, timeout=30) as client:
            waiting = asyncio.create_task(client.get(stream_path(run).replace("/stream", "/result?timeout=30s")))
            await eventually_async(lambda: frequent_ping_server.hub.statistics().subscriptions == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await eventually_async(
                lambda: frequent_ping_server.hub.statistics().subscriptions == 0, what="its going was noticed"
            )


async def test_many_streams_on_one_websocket_pass_the_proxy(
    start_proxy: StartProxy, server: RunningServer, run: RunKey, airflow: AirflowSql
) -> None:
    with start_proxy(server.url) as proxy:
        address = proxy.url.replace("https", "wss") + "/api/v2/stream"
        async with connect(address, proxy=None) as connection:
            wanted = {"op": "subscribe", "id": "a", "dag_id": run.dag_id, "run_id": run.run_id}
            await connection.send(json.dumps(wanted))
            assert types([await _message(connection) for _ in range(2)]) == ["ack", "snapshot"]
            await airflow.set_task(run, "ask", "scheduled")
            assert (await _message(connection))["id"] == "a"


async def test_a_drained_server_ends_streams_cleanly_behind_a_proxy(
    start_proxy: StartProxy, server: RunningServer, run: RunKey
) -> None:
    with start_proxy(server.url) as proxy:
        async with sse(proxy.url, run) as events, websocket(proxy.url, run) as connection:
            await events.next()
            draining = asyncio.create_task(server.hub.drain(5))
            assert types(await events.rest()) == ["close"]
            assert types(await frames_of(connection)) == ["snapshot", "close"]
            assert connection.close_code == 4001
            await draining


async def test_only_triggers_that_wait_are_routed_to_the_server(
    start_proxy: StartProxy, trigger_server: RunningServer, stub: AirflowStub, airflow: AirflowSql
) -> None:
    with start_proxy(trigger_server.url, stub.url) as proxy:
        async with httpx.AsyncClient(base_url=proxy.url, headers={"Authorization": TOKEN}, timeout=DEADLINE) as client:
            plain = await client.post(RUNS, json={"dag_run_id": "plain"})
            assert plain.json()["dag_run_id"] == "plain"
            waiting = asyncio.create_task(client.post(WAIT, json={"dag_run_id": "waits"}))
            await eventually_async(lambda: trigger_server.hub.statistics().subscriptions == 1)
            await airflow.complete_chain(RunKey("chat", "waits"))
            assert (await waiting).json()["results"] == {"answer": ANSWER}
    assert [one.headers["authorization"] for one in stub.triggers] == [TOKEN, TOKEN]


async def test_each_path_is_routed_to_its_server(start_proxy: StartProxy, settings: Callable[..., Settings]) -> None:
    async with _serve_text("airflow") as airflow, _serve_text("ours") as ours:
        with start_proxy(ours, airflow) as proxy:
            async with httpx.AsyncClient(base_url=proxy.url, timeout=DEADLINE) as client:

                async def server_of(method: str, path: str) -> str:
                    return (await client.request(method, path)).text

                for method, path in _paths_of_ours(settings()):
                    assert await server_of(method, path) == "ours", path
                for method, path in PATHS_OF_AIRFLOW:
                    assert await server_of(method, path) == "airflow", path


async def test_the_doctor_finds_nothing_wrong_with_the_proxy(start_proxy: StartProxy, server: RunningServer) -> None:
    with start_proxy(server.url, compressing=True) as proxy:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=DEADLINE) as client:
            checks = ServerChecks(client, None)
            found = [await checks.check_server(), await checks.check_buffering(), await checks.check_websocket()]
    assert [one.level for one in found if one.level == "problem"] == []


RUN = f"/api/v2/dags/chat/dagRuns/{quote('manual__2026-11-22T10:00:00+00:00', safe='')}"

PATHS_OF_AIRFLOW = [
    ("GET", "/"),
    ("GET", "/dags/stream/runs/stream"),
    ("GET", "/assets"),
    ("GET", "/assets/1"),
    ("GET", "/api/v2/dags"),
    ("GET", "/api/v2/dags/chat"),
    ("GET", "/api/v2/dags/chat/dagRuns"),
    ("GET", "/api/v2/dags/chat/dagRuns?wait_for_completion=true"),
    ("POST", "/api/v2/dags/chat/dagRuns"),
    ("POST", "/api/v2/dags/chat/dagRuns/list"),
    ("GET", RUN),
    ("POST", f"{RUN}/clear"),
    ("GET", f"{RUN}/taskInstances/result"),
    ("GET", f"{RUN}/taskInstances/stream"),
    ("GET", f"{RUN}/taskInstances/input"),
    ("GET", f"{RUN}/taskInstances/answer/1/hitlDetails"),
    ("GET", f"{RUN}/upstreamAssetEvents"),
    ("GET", "/api/v2/monitor/health"),
]


PATH_PARAMETERS = {"{dag_id}": "chat", "{run_id}": "manual__2026-11-22T10%3A00%3A00%2B00%3A00"}
UNROUTED = ("/chat/completions",)
"""Paths without `/v1` could be Airflow's."""


def _paths_of_ours(settings: Settings) -> Iterator[tuple[str, str]]:
    """Return the application's paths below Airflow's API, its pages, and its health endpoints."""
    for route in create_app(settings).routes:
        assert isinstance(route, (Route, WebSocketRoute))
        if not route.path.startswith(("/api/v2/", "/v1/", "/assets/", "/chat", "/runs/")) or route.path in UNROUTED:
            continue
        path = re.sub(r"{\w+}", lambda found: PATH_PARAMETERS.get(found[0], "one"), route.path)
        method = "POST" if isinstance(route, Route) and route.methods == {"POST"} else "GET"
        yield method, f"{path}?wait_for_completion=true" if path.endswith("/dagRuns") else path
    yield from (("GET", "/health"), ("GET", "/ready"))


@asynccontextmanager
async def _serve_text(text: str) -> AsyncIterator[str]:
    """Serve a text at every path; yields the URL."""
    config = uvicorn.Config(PlainTextResponse(text), port=0, log_config=None, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        await eventually_async(lambda: server.started or task.done(), what="it listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


NextFrame = Callable[[], Any]


@asynccontextmanager
async def _lines(url: str, key: RunKey) -> AsyncIterator[NextFrame]:
    """Open a stream as NDJSON; yields a function that waits for the next frame."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        client.stream("GET", stream_path(key), headers=NDJSON) as response,
    ):
        lines = response.aiter_lines()

        async def following() -> Frame:
            frame: Frame = json.loads(await asyncio.wait_for(anext(lines), DEADLINE))
            return frame

        yield following


@asynccontextmanager
async def _messages(url: str, key: RunKey) -> AsyncIterator[NextFrame]:
    """Open a stream as WebSocket; yields a function that waits for the next frame."""
    async with websocket(url, key) as connection:
        yield lambda: _message(connection)


async def _message(connection: ClientConnection) -> Frame:
    frame: Frame = json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))
    return frame
