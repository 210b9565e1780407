"""Hostile and idle clients do not affect other clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.hostile import attack_server
from support.hostile_clients import KINDS
from support.raw_connection import UPGRADE, RawConnection, open_raw, request
from support.server import RunningServer, running_server
from support.streams import DEADLINE, sse, stream_path
from support.waiting import eventually_async

CONNECTIONS = 1000

pytestmark = pytest.mark.usefixtures("no_tracebacks")

bounded = examples(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


async def _open_connections(stack: AsyncExitStack, url: str, data: bytes) -> list[RawConnection]:
    """Open many connections, and send data on each that starts no stream."""
    connections = [await stack.enter_async_context(open_raw(url)) for _ in range(CONNECTIONS)]
    for one in connections:
        await one.send(data)
    return connections


async def test_a_thousand_unfinished_requests_delay_no_other_client(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    async with running_server(settings(request_timeout="3s")) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        events = await stack.enter_async_context(sse(server.url, run))
        assert (await events.next())["type"] == "snapshot"
        connections = await _open_connections(stack, server.url, request(stream_path(run))[:-2])
        await airflow.set_task(run, "ask", "running")
        assert (await events.next())["type"] == "task"
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/ready")).status_code == 200
        for one in connections:
            await one.send(b"X")
        answers = await asyncio.gather(*(one.read_to_end() for one in connections))
        assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
        await airflow.set_task(run, "ask", "success")
        assert (await events.next())["state"] == "success"


async def test_a_thousand_silent_websockets_delay_no_other_client(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    async with running_server(settings(idle_timeout="3s")) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        events = await stack.enter_async_context(sse(server.url, run))
        assert (await events.next())["type"] == "snapshot"
        connections = await _open_connections(stack, server.url, request("/api/v2/stream", *UPGRADE))
        await airflow.set_task(run, "ask", "running")
        assert (await events.next())["type"] == "task"
        closes = await asyncio.gather(*(one.reader.readuntil(b"\x11\x9e") for one in connections))
        assert all(close.startswith(b"HTTP/1.1 101") for close in closes), "4510 is 0x119e"
        for one in connections:
            one.writer.transport.abort()
        await airflow.set_task(run, "ask", "success")
        assert (await events.next())["state"] == "success"


NAMES = st.sampled_from(["", "a", "x" * 64, "x" * 65, "\0", "../..", "é", "\U0001f3ab"])
MEMBERS = st.one_of(NAMES, st.lists(NAMES, max_size=3), st.integers(), st.none(), st.booleans())
KEYS = ("id", "dag_id", "run_id", "result", "until", "cursor", "tag", "type", "state", "x")
OPERATIONS = st.builds(
    lambda op, rest: {"op": op, **rest},
    st.sampled_from(["subscribe", "unsubscribe", "ping", "auth", "?"]),
    st.dictionaries(
        st.sampled_from(("op", "token", *KEYS)),
        MEMBERS,
    ),
)
MESSAGES = st.one_of(
    OPERATIONS.map(json.dumps),
    st.text(max_size=200),
    st.binary(max_size=200),
    st.sampled_from(["[" * 20_000, '{"op":"ping","id":"\\ud800"}', "x" * 70_000, "null", "1e999"]),
)


async def _check_response(url: str, messages: list[str | bytes]) -> None:
    """Send messages; check that the server still responds, or that a message was too large."""
    async with connect(url.replace("http", "ws", 1), proxy=None) as connection:
        with suppress(ConnectionClosed):
            for message in messages:
                await connection.send(message)
            await connection.send('{"op":"auth","token":"any","id":"the last"}')
            while (frame := json.loads(await connection.recv())).get("id") != "the last":
                assert frame["type"] in {"ack", "error", "snapshot", "reset", "resumed", "ping"}, frame
                assert frame.get("status", 400) < 500, frame
            return
    assert connection.close_code == 1009


@pytest.mark.parametrize("path", ["run", "many"])
async def test_any_websocket_message_gets_a_response(server: RunningServer, run: RunKey, path: str) -> None:
    loop = asyncio.get_running_loop()
    url = server.url + (stream_path(run) if path == "run" else "/api/v2/stream")

    @bounded
    @given(st.lists(MESSAGES, min_size=1, max_size=8))
    def send_messages(messages: list[str | bytes]) -> None:
        asyncio.run_coroutine_threadsafe(_check_response(url, messages), loop).result(DEADLINE)

    await asyncio.to_thread(send_messages)
    await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


NUMBERS = st.one_of(st.integers(-1, 2**70).map(str), st.sampled_from(["", "-", "0x1", "\u0661", "1_0", " 1"]))
CURSORS = st.one_of(
    st.text(max_size=60),
    st.builds("{}.{}:{}:{}".format, st.text("0123456789abcdef", max_size=13), NUMBERS, NUMBERS, NUMBERS),
    st.builds("{}.{}:{}:{}@{}".format, st.text("0123456789abcdef", max_size=13), NUMBERS, NUMBERS, NUMBERS, st.text()),
)


async def test_any_cursor_gets_a_response(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.complete_chain(run)
    with httpx.Client(base_url=server.url, timeout=DEADLINE) as client:

        @bounded
        @given(CURSORS)
        def request_with_cursor(cursor: str) -> None:
            answer = client.get(stream_path(run, f"?cursor={quote(cursor, safe='')}"))
            details: dict[str, Any] = {"status": answer.status_code, "text": answer.text}
            assert answer.status_code in {200, 204, 400, 422}, details
            assert answer.status_code != 200 or "event: end" in answer.text, details

        await asyncio.to_thread(request_with_cursor)


@pytest.mark.parametrize("workers", [1, 2])
async def test_hostile_clients_of_all_kinds_disturb_no_stream(journal: str, workers: int) -> None:
    report = await attack_server(journal, streams=30, seconds=8, copies=1, workers=workers)
    # How long frames take depends on the load of the machine; `make check-hostile` judges it.
    assert [miss for miss in report["misses"] if "p99" not in miss] == []
    assert report["hostile_clients"] == len(KINDS)
    assert report["attacked"]["frames"] > 0
