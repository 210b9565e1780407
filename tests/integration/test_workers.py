"""Several worker processes on one port: one process reads the journal for all, and a lost process loses no frame."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.client import AsyncClient
from stream_server.domain.run_state import RunKey
from stream_server.protocol.frames import RunTransition, Snapshot, TaskTransition
from support.airflow_sql import AirflowSql
from support.multi_process_server import START, MultiProcessServer, connections_of, open_streams, read_transitions
from support.server import server_process
from support.streams import states, types
from support.waiting import eventually_answered, eventually_async

WORKERS = 3
CLIENTS = 24
MISSING = "1 of 3 workers do not serve yet, or have died and are being replaced"


Serve = Callable[..., Any]


@pytest.fixture
def serve(journal: str, unused_tcp_port: int) -> Serve:
    """A function that runs a server with several workers."""

    @asynccontextmanager
    async def run_server(*arguments: str, admin: str | None = None) -> AsyncIterator[MultiProcessServer]:
        command = ("--port", str(unused_tcp_port), "--workers", str(WORKERS), "--grace-period", "5s", *arguments)
        async with server_process(*command, STREAM_SERVER_DATABASE_URL=journal) as process:
            server = MultiProcessServer(process, f"http://127.0.0.1:{unused_tcp_port}", admin)
            log_reader = asyncio.create_task(server.read_log())
            try:
                await server.wait_until_ready()
                yield server
            finally:
                if process.returncode is None:
                    process.terminate()
                    await asyncio.wait_for(process.wait(), START)
                await log_reader

    return run_server


async def test_killed_worker_is_replaced_and_others_continue(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    async with serve() as server, open_streams(server.url, run, CLIENTS) as clients:
        counted = await server.metric("stream_server_open_streams")
        assert counted == CLIENTS
        victim = max(server.workers(), key=connections_of)
        victim.kill()
        await airflow.complete_chain(run)
        unbroken = []
        for events in clients:
            with suppress(httpx.TransportError):
                await events.until("result")
                unbroken.append(events)
        assert 0 < len(unbroken) < CLIENTS
        await server.wait_until_ready()
        assert len(server.workers()) == WORKERS
        assert victim.pid not in {one.pid for one in server.workers()}
        assert await server.metric("stream_server_workers_lost_total") == 1
        assert await server.metric("stream_server_open_streams") == len(unbroken)
        # The new worker has the earlier state, and gets later transitions.
        async with open_streams(server.url, run, CLIENTS) as others:
            await airflow.set_run(run, "success")
            for events in others:
                assert (await events.until("end"))[-1]["outcome"] == "result"
    assert "A worker died (signal SIGKILL); starting another" in "".join(server.log)


async def test_a_worker_that_cannot_be_started_is_started_later(
    serve: Serve, unused_tcp_port_factory: Callable[[], int]
) -> None:
    port = unused_tcp_port_factory()
    # All workers accept connections to the operators' port. Those to the other one may wait for the missing worker.
    async with serve("--admin-port", str(port), admin=f"http://127.0.0.1:{port}") as server:

        def count_failures() -> int:
            return sum("could not be started" in line for line in server.log)

        limits, descriptors = server.parent.rlimit(psutil.RLIMIT_NOFILE), server.parent.num_fds()
        # The supervisor gets no new descriptor.
        server.parent.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        server.workers()[0].kill()
        await eventually_async(lambda: count_failures() > 3, what="the start was tried again")
        assert (await server.get_json("/ready"))["problems"] == [MISSING]
        assert server.parent.num_fds() < descriptors
        server.parent.rlimit(psutil.RLIMIT_NOFILE, limits)
        await server.wait_until_ready()
        assert len(server.workers()) == WORKERS


async def test_ready_reports_a_lost_worker_and_python_clients_resume_at_others(
    serve: Serve, airflow: AirflowSql, run: RunKey
) -> None:
    before = len(await read_transitions(airflow, run))
    async with serve() as server, AsyncClient(server.url) as client:
        streams = [client.stream(*run, until="run") for _ in range(CLIENTS)]
        for stream in streams:
            assert isinstance(await anext(stream), Snapshot)
        waits = [asyncio.create_task(client.wait(*run, until="run", timeout=START)) for _ in range(CLIENTS)]
        max(server.workers(), key=connections_of).kill()

        async def is_reported() -> bool:
            return [*(await server.get_json("/ready"))["problems"]] == [MISSING]

        await eventually_answered(is_reported, within=START)
        await server.wait_until_ready()
        await airflow.complete_chain(run)
        await airflow.set_task(run, "clean_up", "success")
        await airflow.set_run(run, "success")
        expected = (await read_transitions(airflow, run))[before:]
        for stream in streams:
            frames = [frame async for frame in stream]
            seen = [(one.seq, one.state) for one in frames if isinstance(one, (TaskTransition, RunTransition))]
            assert seen == expected
        assert {outcome.state for outcome in await asyncio.gather(*waits)} == {"success"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_workers_end_with_the_supervisor(serve: Serve, run: RunKey, number: signal.Signals) -> None:
    async with serve() as server, open_streams(server.url, run, 6) as clients:
        workers = server.workers()
        server.process.send_signal(number)
        for events in clients:
            assert types(await events.rest()) == ["close"], "each worker drains its streams by itself"
        await asyncio.wait_for(server.process.wait(), START)
        await eventually_async(lambda: not any(worker.is_running() for worker in workers), within=START)
    assert server.process.returncode == (0 if number == signal.SIGTERM else -number)
    assert "ERROR" not in "".join(server.log), server.log


async def test_suspended_worker_ends_with_the_supervisor(serve: Serve) -> None:
    async with serve() as server:
        workers = server.workers()
        workers[0].suspend()
        server.process.kill()
        await eventually_async(lambda: not any(worker.is_running() for worker in workers[1:]), within=START)
        workers[0].resume()
        await eventually_async(lambda: not workers[0].is_running(), within=START)


async def test_streams_of_all_workers_survive_a_crash_of_postgresql(
    postgres: EmbeddedPostgres, journal: str, serve: Serve, run: RunKey
) -> None:
    loop = asyncio.get_running_loop()
    async with serve() as server, open_streams(server.url, run, CLIENTS) as clients:
        await loop.run_in_executor(None, postgres.kill)

        async def is_reported() -> bool:
            return "PostgreSQL does not answer" in "".join((await server.get_json("/ready"))["problems"])

        await eventually_answered(is_reported)
        await loop.run_in_executor(None, postgres.start)
        async with AirflowSql.open(journal) as airflow:
            await airflow.run_task(run, "answer", "after all")
            await airflow.set_run(run, "success")
        for events in clients:
            frames = await events.until("end")
            assert states(frames, "answer")[-3:] == ["queued", "running", "success"]
            assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": "after all"}]
