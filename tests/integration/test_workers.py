"""Several worker processes on one port: one process reads the journal for all, and a lost process loses no frame."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql
from support.multi_process_server import START, MultiProcessServer
from support.server import server_process, terminate_connections
from support.streams import Events, Frame, frames_of, sse, states, types, websocket
from support.waiting import eventually_answered, eventually_async

WORKERS = 3
CLIENTS = 24
MISSING = "1 of 3 workers do not serve yet, or have died and are being replaced"


def connections_of(worker: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port != 0 for one in worker.net_connections("tcp4"))


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


@asynccontextmanager
async def open_streams(url: str, key: RunKey, clients: int = CLIENTS) -> AsyncIterator[list[Events]]:
    """Open many streams, and read the snapshot of each."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(sse(url, key, "?until=run")) for _ in range(clients)]
        for events in opened:
            assert (await events.next())["type"] == "snapshot"
        yield opened


def transitions_of(frames: list[Frame]) -> list[tuple[int, str]]:
    return [(frame["seq"], frame["state"]) for frame in frames if frame["type"] in {"task", "run"}]


async def read_transitions(airflow: AirflowSql, key: RunKey) -> list[tuple[int, str]]:
    rows = await airflow.connection.fetch(
        "SELECT id, state FROM stream_server.journal WHERE run_id = $1 AND kind IN ('task', 'run') ORDER BY id",
        key.run_id,
    )
    return [tuple(row) for row in rows]


async def test_every_worker_sends_every_transition_once(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    before = len(await read_transitions(airflow, run))
    async with serve() as server, open_streams(server.url, run) as clients:
        shares = [connections_of(worker) for worker in server.workers()]
        assert len(shares) == WORKERS
        assert min(shares) > 0, "the kernel distributes the connections"
        await airflow.complete_chain(run)
        await airflow.set_task(run, "clean_up", "success")
        await airflow.set_run(run, "success")
        unbroken = [transitions_of(await events.rest()) for events in clients]
        expected = (await read_transitions(airflow, run))[before:]
        assert len(expected) > 10
        assert unbroken == [expected] * CLIENTS
        assert await listeners(airflow) == 1
    assert "ERROR" not in "".join(server.log), server.log


async def listeners(airflow: AirflowSql) -> int:
    """Return the number of sessions that listen, judged by their last statements."""
    found = await airflow.connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stream_server'"
        " AND datname = current_database() AND query ~ '^LISTEN|pg_try_advisory_lock|pg_advisory_unlock_shared'",
    )
    return int(found)


async def test_client_resumes_at_another_worker(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    async with serve() as server:
        async with sse(server.url, run, "?until=run") as events:
            await events.next()
            await airflow.run_task(run, "ask", 1)
            first = [await events.next()]
            while len(first) < 3 or events.ids[-1] is None:
                # Only the last frame of a batch has a cursor.
                first.append(await events.next())
            cursor = events.ids[-1]
        await airflow.run_task(run, "answer", 2)
        await airflow.set_run(run, "success")
        expected = [one for one in await read_transitions(airflow, run) if one[0] > first[-1]["seq"]]
        # Often enough that each worker gets a request.
        for _ in range(4 * WORKERS):
            async with sse(server.url, run, "?until=run", {"Last-Event-ID": cursor or "none"}) as again:
                frames = await again.rest()
            assert frames[0]["type"] == "resumed"
            assert transitions_of(frames) == expected


async def test_killed_worker_is_replaced_and_others_continue(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    async with serve() as server, open_streams(server.url, run) as clients:
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
        async with open_streams(server.url, run) as others:
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


async def test_ready_only_while_all_workers_serve(serve: Serve) -> None:
    async with serve() as server:
        server.workers()[0].kill()

        async def is_reported() -> bool:
            return [*(await server.get_json("/ready"))["problems"]] == [MISSING]

        await eventually_answered(is_reported, within=START)
        await server.wait_until_ready()


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


async def test_no_transition_is_lost_with_database_connections(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    before = len(await read_transitions(airflow, run))
    async with serve() as server, open_streams(server.url, run) as clients:
        assert await terminate_connections(airflow.connection) >= 2
        await airflow.complete_chain(run)
        await airflow.set_run(run, "success")
        expected = (await read_transitions(airflow, run))[before:]
        for events in clients:
            assert transitions_of(await events.rest()) == expected
        assert await server.metric("stream_server_connections_lost_total") == 1


async def test_streams_of_all_workers_survive_a_crash_of_postgresql(
    postgres: EmbeddedPostgres, journal: str, serve: Serve, run: RunKey
) -> None:
    loop = asyncio.get_running_loop()
    async with serve() as server, open_streams(server.url, run) as clients:
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


async def test_transactions_without_notify_reach_every_worker(
    journal: str, serve: Serve, airflow: AirflowSql, run: RunKey
) -> None:
    """With many concurrent writers the tail stays active, and transactions do not notify."""
    version = await airflow.connection.fetchval("SELECT id FROM dag_version LIMIT 1")
    keys = [RunKey("chat", f"load_{number}") for number in range(8)]
    for key in keys:
        await airflow.trigger(key, version, list(CHAIN))
    async with serve() as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(sse(server.url, key, "?until=run")) for key in keys]
        for events in clients:
            await events.next()
        before = [len(await read_transitions(airflow, key)) for key in keys]

        async def load(key: RunKey) -> None:
            connection = await asyncpg.connect(journal)
            for turn in range(60):
                await connection.execute(
                    "UPDATE task_instance SET state = $2 WHERE run_id = $1 AND task_id = 'ask'",
                    key.run_id,
                    ("queued", "running")[turn % 2],
                )
            await connection.close()

        await asyncio.gather(*map(load, keys))
        for key in keys:
            await airflow.set_run(key, "success")
        for key, events, known in zip(keys, clients, before, strict=True):
            assert transitions_of(await events.rest()) == (await read_transitions(airflow, key))[known:]
        assert await server.metric('stream_server_reads_total{why="load"}') > 0
        assert await listeners(airflow) == 1


async def test_output_is_complete_for_clients_that_subscribe_meanwhile(
    serve: Serve, airflow: AirflowSql, run: RunKey
) -> None:
    """Batches are sent while messages of workers that the run is watched are on their way."""
    tokens = [f"{number};" for number in range(150)]
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "answer")

    async def emit() -> None:
        for index, token in enumerate(tokens):
            await airflow.emit_output(run, "answer", index, token)

    async with serve() as server, AsyncExitStack() as stack:
        emitting = asyncio.create_task(emit())
        clients = [await stack.enter_async_context(sse(server.url, run, "?until=run")) for _ in range(CLIENTS)]
        await emitting
        await airflow.set_run(run, "success")
        for events in clients:
            values = [frame["value"] for frame in await events.rest() if frame["type"] == "chunk"]
            assert "".join(values) == "".join(tokens)


async def test_metrics_are_summed_over_workers(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    async with serve() as server:
        async with open_streams(server.url, run) as clients, websocket(server.url, run) as connection:
            assert await server.metric("stream_server_open_streams") == CLIENTS + 1
            assert await server.metric("stream_server_workers") == WORKERS
            assert await server.metric("stream_server_tail_connected") == 1
            await airflow.complete_chain(run)
            for events in clients:
                await events.until("result")
            assert types(await frames_of(connection))[-1] == "end"
            rows = await server.metric("stream_server_read_rows_total")
            assert rows == await server.metric("stream_server_lag_seconds_count") > 0
        await eventually_answered(lambda: is_metric(server, "stream_server_open_streams", 0))


async def test_human_input_requests_do_not_stop_workers(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    before = len(await read_transitions(airflow, run))
    async with serve() as server, open_streams(server.url, run) as clients:
        workers = {worker.pid for worker in server.workers()}
        await airflow.request_input(run, "ask")
        await airflow.complete_chain(run)
        await airflow.set_run(run, "success")
        expected = (await read_transitions(airflow, run))[before:]
        for events in clients:
            frames = await events.rest()
            assert transitions_of(frames) == expected
            assert "reset" not in types(frames)
        assert {worker.pid for worker in server.workers()} == workers
        assert await server.metric("stream_server_messages_failed_total") == 0
    assert "ERROR" not in "".join(server.log), server.log


async def test_rows_of_an_unknown_kind_do_not_stop_workers(serve: Serve, airflow: AirflowSql, run: RunKey) -> None:
    async with serve() as server, open_streams(server.url, run) as clients:
        workers = {worker.pid for worker in server.workers()}
        await airflow.write_unknown_row()
        for events in clients:
            assert (await events.until("reset"))[-1]["reason"] == "transitions_lost"
            assert (await events.next())["type"] == "snapshot"
        before = len(await read_transitions(airflow, run))
        await airflow.complete_chain(run)
        await airflow.set_run(run, "success")
        expected = (await read_transitions(airflow, run))[before:]
        for events in clients:
            assert transitions_of(await events.rest()) == expected
        assert {worker.pid for worker in server.workers()} == workers
        assert await server.metric("stream_server_journal_rows_skipped_total") == 1
    assert [line for line in server.log if "ERROR" in line and "unknown kind 'unknown'" in line]


async def test_operators_port_is_shared_by_all_workers(serve: Serve, run: RunKey, unused_tcp_port_factory: Any) -> None:
    port = unused_tcp_port_factory()
    async with serve("--admin-port", str(port), admin=f"http://127.0.0.1:{port}") as server:
        assert (await server.get_json("/ready"))["status"] == "ready"
        assert await server.metric("stream_server_workers") == WORKERS
        async with open_streams(server.url, run), httpx.AsyncClient(base_url=server.url) as client:
            assert await server.metric("stream_server_open_streams") == CLIENTS
            assert (await client.get("/metrics")).status_code == 404


async def is_metric(server: MultiProcessServer, name: str, value: float) -> bool:
    return await server.metric(name) == value


async def test_process_list_contains_no_secret(journal: str, serve: Serve) -> None:
    password = "very-secret"
    async with serve("--database-url", journal.replace("@", f":{password}@")) as server:
        seen = [" ".join(one.cmdline()) for one in [server.parent, *server.workers()]]
    assert len(seen) == WORKERS + 1
    assert not [line for line in seen if password in line]


async def test_port_in_use_is_reported(journal: str, serve: Serve) -> None:
    async with serve() as server:
        port = server.url.rpartition(":")[2]
        async with server_process("--port", port, "--workers", "2", STREAM_SERVER_DATABASE_URL=journal) as second:
            _, output = await asyncio.wait_for(second.communicate(), START)
        assert second.returncode == 64
        assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in output.decode()
