"""Start, loss of the database, and shutdown of a server."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.exit import ExitCode
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import disable_triggers, enable_triggers, install_journal, uninstall_journal
from stream_server.protocol.close_codes import CloseCode
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server, server_process, terminate_connections
from support.streams import DEADLINE, frames_of, sse, states, stream_path, types, websocket
from support.waiting import eventually_async


async def get(url: str, path: str) -> tuple[int, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
        answer = await client.get(path)
        return answer.status_code, answer.json()


async def wait_for_readiness(url: str, *, ready: bool = True) -> Any:
    """Wait until a server is ready, or not ready; return the body."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        status, body = await get(url, "/ready")
        if (status == 200) == ready:
            return body
        assert asyncio.get_running_loop().time() < deadline, body


async def test_ready_server_reports_its_status(server: RunningServer) -> None:
    assert await get(server.url, "/health") == (200, {"status": "ok"})
    assert await wait_for_readiness(server.url) == {
        "status": "ready",
        "problems": [],
        "warnings": [],
        "tail": {"connected": True, "doorbell": True},
    }


async def test_server_waits_for_a_missing_journal(airflow_database: str) -> None:
    settings = Settings.load(database_url=airflow_database, port=0)
    async with running_server(settings) as server:
        body = await wait_for_readiness(server.url, ready=False)
        assert "run `stream-server install`" in body["problems"][0] or "not been reached yet" in body["problems"][0]
        async with sse(server.url, RunKey("chat", "r1")) as events:
            problem = json.loads(await events.response.aread())
        assert (events.response.status_code, events.response.headers["retry-after"]) == (503, "2")
        assert problem["title"] == "Journal unreachable"
        # An EventSource would never reconnect after a status 503.
        async with sse(server.url, RunKey("chat", "r1"), headers={"Accept": "text/event-stream"}) as events:
            (close,) = await events.rest()
        assert events.response.status_code == 200
        assert (close["type"], close["code"], close["reconnect"]) == ("close", CloseCode.UNAVAILABLE, True)
        assert close["reason"] == "The journal has not been reached yet"

        await install_journal(airflow_database, "public", lock_timeout=1, attempts=1)
        await wait_for_readiness(server.url)


async def test_no_transition_is_lost_with_database_connections(
    postgres: EmbeddedPostgres, airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        killed = await terminate_connections(airflow.connection)
        await airflow.run_task(run, "answer", "still here")
        frames = await events.rest()
    assert killed >= 2
    assert states(frames, "answer")[:3] == ["scheduled", "queued", "running"]
    assert len(states(frames, "answer")) == len(set(states(frames, "answer")))
    assert frames[-2]["results"] == {"answer": "still here"}


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "fast stop"])
async def test_streams_survive_a_restart_of_postgresql(
    postgres: EmbeddedPostgres, journal: str, server: RunningServer, run: RunKey, *, kill: bool
) -> None:
    loop = asyncio.get_running_loop()
    async with sse(server.url, run) as events, websocket(server.url, run) as connection:
        await events.next()
        await loop.run_in_executor(None, postgres.kill if kill else postgres.stop)
        body = await wait_for_readiness(server.url, ready=False)
        assert "PostgreSQL does not answer" in body["problems"][0]
        await loop.run_in_executor(None, postgres.start)
        async with AirflowSql.open(journal) as airflow:
            await airflow.run_task(run, "answer", "after all")
        frames = await events.until("end")
        assert frames[-2]["results"] == {"answer": "after all"}
        assert types(await frames_of(connection))[-2:] == ["result", "end"]
    await wait_for_readiness(server.url)


async def test_reinstalled_journal_resets_the_streams(
    journal: str, airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        await uninstall_journal(journal, lock_timeout=1, attempts=1)
        await install_journal(journal, "public", lock_timeout=1, attempts=1)
        await terminate_connections(airflow.connection)
        reset = await events.until("reset")
        assert reset[-1]["reason"] == "journal_changed"
        assert (await events.next())["type"] == "snapshot"
        await airflow.run_task(run, "answer", "anew")
        assert (await events.rest())[-2]["results"] == {"answer": "anew"}


async def test_draining_server_ends_every_stream_cleanly(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running_server(settings()) as server:
            await eventually_async(lambda: server.hub.is_live)
            async with sse(server.url, run) as events, websocket(server.url, run) as connection:
                await events.next()
                await connection.recv()
                draining = asyncio.create_task(server.hub.drain(5))
                (close,) = await events.rest()
                last = await frames_of(connection)
                await draining
                assert (await get(server.url, "/ready"))[0] == 503
                refused, problem = await get(server.url, stream_path(run))
                async with sse(server.url, run, headers={"Accept": "text/event-stream"}) as refusal:
                    (later,) = await refusal.rest()
    assert (close["type"], close["code"], close["reconnect"]) == ("close", CloseCode.DRAINING, True)
    assert 500 <= close["retry_ms"] <= 3000
    assert last[-1]["type"] == "close"
    assert (connection.close_code, connection.close_reason) == (CloseCode.DRAINING, "The server is shutting down")
    assert (refused, problem["title"]) == (503, "Draining")
    assert (later["type"], later["code"], later["reconnect"]) == ("close", CloseCode.DRAINING, True)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_process_drains_on_sigterm_and_exits(journal: str, run: RunKey, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with server_process("--port", str(unused_tcp_port), STREAM_SERVER_DATABASE_URL=journal) as process:
        assert process.stderr is not None
        log = b""
        while b"Following the journal" not in log or b"Listening on" not in log:
            log += await asyncio.wait_for(process.stderr.readline(), DEADLINE)
        async with sse(url, run) as events:
            await events.next()
            process.send_signal(signal.SIGTERM)
            assert types(await events.rest()) == ["close"]
        log += await asyncio.wait_for(process.stderr.read(), DEADLINE)
        await asyncio.wait_for(process.wait(), DEADLINE)
    assert b"ERROR" not in log
    assert b"Traceback" not in log


async def test_public_address_requires_an_authorization() -> None:
    async with server_process("--host", "0.0.0.0", STREAM_SERVER_DATABASE_URL="postgresql://h/d") as process:
        _, output = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 64
    assert b"Without authorization, everyone who can connect can read everything" in output
    assert b"--airflow-url" in output


async def test_two_servers_of_one_database_send_the_same_frames(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    async with running_server(settings()) as one, running_server(settings()) as other:
        await eventually_async(lambda: one.hub.is_live and other.hub.is_live)
        async with websocket(one.url, run) as first, websocket(other.url, run) as second:
            await airflow.run_task(run, "answer", 1)
            frames = await asyncio.gather(frames_of(first), frames_of(second))

    def transitions(frames: list[dict[str, Any]]) -> list[tuple[int, str]]:
        return [(frame["seq"], frame["state"]) for frame in frames if frame["type"] == "task"]

    one_transitions, other_transitions = map(transitions, frames)
    assert one_transitions[:3] == other_transitions[:3]
    assert [state for _, state in one_transitions[:3]] == ["scheduled", "queued", "running"]


async def test_server_polls_where_nothing_is_notified(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    await airflow.connection.execute(
        "CREATE OR REPLACE FUNCTION stream_server.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''"
    )
    await airflow.connection.execute(
        "DO $$ DECLARE source text; BEGIN"
        " source := replace(pg_get_functiondef('stream_server.ring'::regproc), 'PERFORM pg_catalog.pg_notify',"
        " 'PERFORM stream_server.pg_notify'); EXECUTE source; END $$"
    )
    async with running_server(settings(poll_interval="100ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.set_task(run, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["--port", "--admin-port"])
async def test_a_port_in_use_ends_the_command_with_one_code(journal: str, workers: str, name: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        options = ("--workers", workers, *(("--port", "0") if name == "--admin-port" else ()), name, port)
        async with server_process(*options, STREAM_SERVER_DATABASE_URL=journal) as process:
            _, log = await asyncio.wait_for(process.communicate(), 3 * DEADLINE)
    assert process.returncode == ExitCode.USAGE
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in log.decode().splitlines()[-1]
    assert b"Traceback" not in log


async def test_disabled_triggers_are_noticed_within_the_poll_interval(
    settings: Callable[..., Settings], journal: str, run: RunKey
) -> None:
    async with running_server(settings(check_interval="1h", poll_interval="2s")) as server:
        await wait_for_readiness(server.url)
        await disable_triggers(journal)
        body = await asyncio.wait_for(wait_for_readiness(server.url, ready=False), 4)
        assert body["problems"] == ["the triggers are disabled; run `stream-server triggers enable`"]
        await enable_triggers(journal)
        await asyncio.wait_for(wait_for_readiness(server.url), 4)
