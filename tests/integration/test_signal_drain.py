"""Shutdown under plain uvicorn, which does not drain streams, with each of its HTTP and WebSocket implementations."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.protocol.close_codes import CloseCode
from support.airflow_sql import AirflowSql
from support.server import module_process
from support.streams import DEADLINE, frames_of, sse, stream_path, types, unread, websocket
from support.waiting import eventually_answered

LARGE = 12 * 2**20
"""Bytes of a value that does not fit into the system's socket buffers."""

IMPLEMENTATIONS = [("h11", "websockets"), ("httptools", "websockets-sansio")]


@asynccontextmanager
async def plain_uvicorn(journal: str, port: int, *arguments: str, **others: str) -> AsyncIterator[Process]:
    """Run `uvicorn stream_server.app:app`; yield when it is ready."""
    command = ("uvicorn", "stream_server.app:app", "--port", str(port), "--no-access-log", *arguments)
    environment = {
        "STREAM_SERVER_DATABASE_URL": journal,
        "STREAM_SERVER_AUTH": "none",
        "STREAM_SERVER_I_KNOW_THAT_EVERYBODY_CAN_READ_EVERYTHING": "true",
        "STREAM_SERVER_MAX_RESULT_BYTES": str(2 * LARGE),
        **others,
    }
    async with module_process(*command, **environment) as process:
        await eventually_answered(lambda: status(f"http://127.0.0.1:{port}/ready", 200), within=30)
        yield process


async def status(url: str, expected: int) -> bool:
    try:
        async with httpx.AsyncClient(timeout=DEADLINE) as client:
            return (await client.get(url)).status_code == expected
    except httpx.ConnectError:
        return False


async def wait_for_exit(process: Process) -> str:
    """Wait until a process has exited; return the rest of its output."""
    _, output = await asyncio.wait_for(process.communicate(), DEADLINE)
    return str(output.decode())


@pytest.mark.parametrize(("http", "ws"), IMPLEMENTATIONS)
async def test_streams_end_cleanly_when_plain_uvicorn_stops(
    journal: str, run: RunKey, unused_tcp_port: int, http: str, ws: str
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    path = stream_path(run).removesuffix("stream")
    async with (
        plain_uvicorn(journal, unused_tcp_port, "--http", http, "--ws", ws) as process,
        sse(url, run) as events,
        sse(url, run, headers={"Accept": "application/x-ndjson"}) as lines,
        websocket(url, run) as one,
        connect(f"ws://127.0.0.1:{unused_tcp_port}/api/v2/stream", proxy=None) as many,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        client.stream("GET", f"{path}wait?interval=60") as waiter,
    ):
        await events.next()
        following = lines.response.aiter_lines()
        await anext(following)
        await one.recv()
        await many.send(json.dumps({"op": "subscribe", "id": "a", "dag_id": run.dag_id, "run_id": run.run_id}))
        assert [json.loads(await many.recv())["type"] for _ in range(2)] == ["ack", "snapshot"]
        waiting = waiter.aiter_lines()
        await anext(waiting)

        process.send_signal(signal.SIGTERM)
        assert types(await events.rest()) == ["close"]
        assert types([json.loads(line) async for line in following]) == ["close"]
        assert types(await frames_of(one)) == ["close"]
        assert one.close_code == CloseCode.DRAINING
        assert types(await frames_of(many)) == ["close"]
        assert many.close_code == CloseCode.DRAINING
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            await anext(waiting)
        log = await wait_for_exit(process)
    assert process.returncode == -signal.SIGTERM, "uvicorn exits by the signal that stopped it"
    assert "ERROR" not in log, log
    assert "Traceback" not in log, log


async def test_draining_server_is_not_ready_and_refuses_streams(
    journal: str, airflow: AirflowSql, run: RunKey, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    await airflow.run_task(run, "answer", "x" * LARGE)
    async with (
        plain_uvicorn(journal, unused_tcp_port) as process,
        unread(url, run, "?until=run", upgrade=False, last="result") as slow,
    ):
        process.send_signal(signal.SIGTERM)
        await eventually_answered(lambda: status(f"{url}/ready", 503))
        async with sse(url, run) as refused:
            assert json.loads(await refused.response.aread())["title"] == "Draining"
        assert process.returncode is None
        loop, read = asyncio.get_running_loop(), b""
        while not read.endswith(b"0\r\n\r\n"):
            data = await asyncio.wait_for(loop.sock_recv(slow, 2**20), DEADLINE)
            assert data, "the body has a clean end"
            read = read[-1000:] + data
        assert b'"code":4001' in read
        log = await wait_for_exit(process)
    assert "ERROR" not in log, log


@pytest.mark.parametrize(("http", "ws"), IMPLEMENTATIONS)
@pytest.mark.parametrize("upgrade", [False, True], ids=["sse", "websocket"])
async def test_a_client_that_does_not_read_the_last_frames_is_aborted(
    journal: str, airflow: AirflowSql, run: RunKey, unused_tcp_port: int, http: str, ws: str, upgrade: bool
) -> None:
    """The kernel alone would wait for as long as the client's kernel acknowledges its probes."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    await airflow.run_task(run, "answer", "x" * LARGE)
    how = ("--http", http, "--ws", ws, "--timeout-graceful-shutdown", "1")
    async with (
        plain_uvicorn(journal, unused_tcp_port, *how, STREAM_SERVER_PING_INTERVAL="200ms") as process,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        unread(url, run, upgrade=upgrade, last="result"),
    ):

        async def has_line(line: str) -> bool:
            return line in (await client.get("/metrics")).text.splitlines()

        assert await has_line("stream_server_open_streams 1.0")
        await eventually_answered(lambda: has_line("stream_server_open_streams 0.0"))
        process.send_signal(signal.SIGTERM)
        log = await wait_for_exit(process)
    assert "Traceback" not in log, log
