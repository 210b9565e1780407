"""`stream-server tail` as a person runs it."""

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


async def tail(
    url: str, run: RunKey, *options: str, stdout: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "tail", *run, "--url", url, *options),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, bytes, bytes]:
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
    return process.returncode, output, errors


async def watched(server: RunningServer) -> None:
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1, what="somebody watches")


async def test_a_terminal_shows_a_table(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    ours, theirs = pty.openpty()
    process = await tail(server.url, run, "--until", "result", stdout=theirs)
    os.close(theirs)
    await watched(server)
    await airflow.complete_chain(run)
    await asyncio.wait_for(process.wait(), DEADLINE)
    shown = b""
    # Linux ends the output of a closed terminal with an error.
    with suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "┏━" in text
    assert "clean_up" in text
    assert "result; the run is running, and goes on" in text
    assert '{"type"' not in text


async def test_a_pipe_gets_frames_as_lines(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    process = await tail(server.url, run, "--until", "result", "--result", "ask")
    await watched(server)
    await airflow.complete_chain(run)
    code, output, _ = await ended(process)
    frames = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert (types(frames)[0], types(frames)[-2:]) == ("snapshot", ["result", "end"])
    assert frames[-2]["results"] == {"ask": {"question": "why"}}


async def test_a_failed_run_exits_with_1(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    await airflow.start_task(run, "answer")
    await airflow.set_task(run, "answer", "failed")
    code, output, _ = await ended(await tail(server.url, run, "--until", "result"))
    assert code == 1
    assert b'"reason":"task_failed"' in output


async def test_a_lost_connection_exits_with_2(run: RunKey, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    code, output, errors = await ended(await tail(url, run, "--patience", "300ms"))
    assert (code, output) == (2, b"")
    assert f"No connection to ws://127.0.0.1:{unused_tcp_port} for 0.3 s".encode() in errors
    assert b"Traceback" not in errors


async def test_a_timeout_exits_with_3(server: RunningServer, run: RunKey) -> None:
    code, _, errors = await ended(await tail(server.url, run, "--timeout", "1s"))
    assert code == 3
    assert b"no outcome within 1 s; the run goes on" in errors


async def test_a_restarted_server_is_found_again(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey, unused_tcp_port: int
) -> None:
    chosen = settings(port=unused_tcp_port)
    async with running_server(chosen) as first:
        await eventually_async(lambda: first.hub.is_live)
        process = await tail(first.url, run, "--until", "result")
        await watched(first)
    async with running_server(chosen) as second:
        await watched(second)
        await airflow.complete_chain(run)
        code, output, _ = await ended(process)
    frames = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert types(frames)[:2] == ["snapshot", "resumed"]
    assert frames[-2]["results"] == {"answer": {"text": "because"}}
