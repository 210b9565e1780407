"""`stream-server tail` as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import DEADLINE, types
from support.waiting import eventually_async


async def start_tail(
    url: str, run: RunKey, *options: str, stdout: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "tail", *run, "--url", url, *options),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )


async def wait_for_end(process: asyncio.subprocess.Process) -> tuple[int | None, bytes, bytes]:
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
    return process.returncode, output, errors


async def wait_for_subscription(server: RunningServer) -> None:
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1, what="a subscription")


async def test_a_terminal_shows_a_table(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    reader, writer = pty.openpty()
    process = await start_tail(server.url, run, "--until", "result", stdout=writer)
    os.close(writer)
    await wait_for_subscription(server)
    await airflow.complete_chain(run)
    await asyncio.wait_for(process.wait(), DEADLINE)
    output = b""
    # On Linux, reading from a closed terminal raises an error instead of an end of file.
    with suppress(OSError):
        while part := os.read(reader, 65536):
            output += part
    os.close(reader)
    assert process.returncode == 0
    text = output.decode()
    assert "┏━" in text
    assert "clean_up" in text
    assert "result; the run is running and continues" in text
    assert '{"type"' not in text


async def test_a_pipe_gets_frames_as_lines(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    process = await start_tail(server.url, run, "--until", "result", "--result", "ask")
    await wait_for_subscription(server)
    await airflow.complete_chain(run)
    code, output, _ = await wait_for_end(process)
    frames = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert (types(frames)[0], types(frames)[-2:]) == ("snapshot", ["result", "end"])
    assert frames[-2]["results"] == {"ask": {"question": "why"}}


async def test_run_marked_as_success_exits_with_0(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    await airflow.start_task(run, "ask")
    async with airflow.connection.transaction():
        await airflow.set_run(run, "success")
        await airflow.set_task(run, "ask", "success")
        await airflow.set_task(run, "answer", "skipped")
    code, output, _ = await wait_for_end(await start_tail(server.url, run, "--until", "result"))
    frames = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert types(frames) == ["snapshot", "end"]
    assert (frames[-1]["outcome"], frames[-1]["reason"]) == ("none", "run_ended")


async def test_failed_run_exits_with_1(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    await airflow.start_task(run, "answer")
    await airflow.set_task(run, "answer", "failed")
    code, output, _ = await wait_for_end(await start_tail(server.url, run, "--until", "result"))
    assert code == 1
    assert b'"reason":"task_failed"' in output


async def test_lost_connection_exits_with_2(run: RunKey, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    code, output, errors = await wait_for_end(await start_tail(url, run, "--patience", "300ms"))
    assert (code, output) == (2, b"")
    assert f"no connection to ws://127.0.0.1:{unused_tcp_port} for 0.3 s".encode() in errors
    assert b"Traceback" not in errors


async def test_timeout_exits_with_3(server: RunningServer, run: RunKey) -> None:
    code, _, errors = await wait_for_end(await start_tail(server.url, run, "--timeout", "1s"))
    assert code == 3
    assert b"no outcome within 1 s; the run continues" in errors


async def test_reconnects_to_a_restarted_server(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey, unused_tcp_port: int
) -> None:
    chosen = settings(port=unused_tcp_port)
    async with running_server(chosen) as first:
        await eventually_async(lambda: first.hub.is_live)
        process = await start_tail(first.url, run, "--until", "result")
        await wait_for_subscription(first)
    async with running_server(chosen) as second:
        await wait_for_subscription(second)
        await airflow.complete_chain(run)
        code, output, _ = await wait_for_end(process)
    frames = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert types(frames)[:2] == ["snapshot", "resumed"]
    assert frames[-2]["results"] == {"answer": {"text": "because"}}
