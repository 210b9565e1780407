"""Streams of several worker processes that all tests of this module share: they harm none of them."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest

from stream_server.cli.demo.ports import choose_port
from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql
from support.multi_process_server import START, WorkersOfServer, connections_of, open_streams, read_transitions
from support.server import server_process, terminate_connections
from support.streams import Frame, frames_of, sse, types, websocket
from support.waiting import eventually_answered

WORKERS = 3
CLIENTS = 24
PASSWORD = "very-secret"

_numbers = itertools.count(1)


class SharedServer(WorkersOfServer):
    """A server of a module, with its log in a file."""

    def __init__(self, pid: int, url: str, admin: str, log_file: Path) -> None:
        super().__init__(pid, url, admin)
        self._log_file = log_file
        self._begin = 0

    def read_lines(self) -> list[str]:
        """Return the lines of the log since the start of the test."""
        return self._log_file.read_text().splitlines()[self._begin :]

    def skip_lines(self) -> None:
        """Leave out all lines so far."""
        self._begin = 0
        self._begin = len(self.read_lines())


@pytest.fixture(scope="module")
def journal(scenario_database: str) -> str:
    """URL of the database of this module."""
    return scenario_database


@pytest.fixture(scope="module")
def shared_server(journal: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """A server with several workers, an operators' port, and a password."""
    port, admin = choose_port(None, "streams"), choose_port(None, "operators")
    options = ("--port", str(port), "--admin-port", str(admin), "--workers", str(WORKERS), "--grace-period", "5s")
    database_url = journal.replace("@", f":{PASSWORD}@")
    log_file = tmp_path_factory.mktemp("workers") / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream_server", "serve", *options, "--database-url", database_url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        server = SharedServer(process.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", log_file)
        asyncio.run(server.wait_until_ready())
        yield server
    finally:
        process.terminate()
        process.wait(START)


@pytest.fixture
async def server(shared_server: SharedServer) -> SharedServer:
    """The server, without streams, as each test begins."""
    await shared_server.wait_until_ready()
    await eventually_answered(lambda: is_metric(shared_server, "stream_server_open_streams", 0))
    shared_server.skip_lines()
    return shared_server


@pytest.fixture
async def run(airflow: AirflowSql) -> RunKey:
    """A run of `CHAIN` that was just triggered."""
    version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
    key = RunKey("chat", f"run_{next(_numbers)}")
    await airflow.trigger(key, version, list(CHAIN))
    return key


def transitions_of(frames: list[Frame]) -> list[tuple[int, str]]:
    return [(frame["seq"], frame["state"]) for frame in frames if frame["type"] in {"task", "run"}]


async def listeners(airflow: AirflowSql) -> int:
    """Return the number of sessions that listen, judged by their last statements."""
    found = await airflow.connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stream_server'"
        " AND datname = current_database() AND query ~ '^LISTEN|pg_try_advisory_lock|pg_advisory_unlock_shared'",
    )
    return int(found)


async def is_metric(server: WorkersOfServer, name: str, value: float) -> bool:
    return await server.metric(name) == value


async def test_every_worker_sends_every_transition_once(server: SharedServer, airflow: AirflowSql, run: RunKey) -> None:
    before = len(await read_transitions(airflow, run))
    async with open_streams(server.url, run, CLIENTS) as clients:
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
    assert "ERROR" not in "".join(server.read_lines())


async def test_client_resumes_at_another_worker(server: SharedServer, airflow: AirflowSql, run: RunKey) -> None:
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


async def test_no_transition_is_lost_with_database_connections(
    server: SharedServer, airflow: AirflowSql, run: RunKey
) -> None:
    before = len(await read_transitions(airflow, run))
    lost = await server.metric("stream_server_connections_lost_total")
    async with open_streams(server.url, run, CLIENTS) as clients:
        assert await terminate_connections(airflow.connection) >= 2
        await airflow.complete_chain(run)
        await airflow.set_run(run, "success")
        expected = (await read_transitions(airflow, run))[before:]
        for events in clients:
            assert transitions_of(await events.rest()) == expected
        assert await server.metric("stream_server_connections_lost_total") == lost + 1


async def test_transactions_without_notify_reach_every_worker(
    journal: str, server: SharedServer, airflow: AirflowSql, run: RunKey
) -> None:
    """With many concurrent writers the tail stays active, and transactions do not notify."""
    version = await airflow.connection.fetchval("SELECT id FROM dag_version LIMIT 1")
    keys = [RunKey("chat", f"load_{number}") for number in range(8)]
    for key in keys:
        await airflow.trigger(key, version, list(CHAIN))
    reads = await server.metric('stream_server_reads_total{why="load"}')
    async with AsyncExitStack() as stack:
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
        assert await server.metric('stream_server_reads_total{why="load"}') > reads
        assert await listeners(airflow) == 1


async def test_output_is_complete_for_clients_that_subscribe_meanwhile(
    server: SharedServer, airflow: AirflowSql, run: RunKey
) -> None:
    """Batches are sent while messages of workers that the run is watched are on their way."""
    tokens = [f"{number};" for number in range(150)]
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "answer")

    async def emit() -> None:
        for index, token in enumerate(tokens):
            await airflow.emit_output(run, "answer", index, token)

    async with AsyncExitStack() as stack:
        emitting = asyncio.create_task(emit())
        clients = [await stack.enter_async_context(sse(server.url, run, "?until=run")) for _ in range(CLIENTS)]
        await emitting
        await airflow.set_run(run, "success")
        for events in clients:
            values = [frame["value"] for frame in await events.rest() if frame["type"] == "chunk"]
            assert "".join(values) == "".join(tokens)


async def test_metrics_are_summed_over_workers(server: SharedServer, airflow: AirflowSql, run: RunKey) -> None:
    async with open_streams(server.url, run, CLIENTS) as clients, websocket(server.url, run) as connection:
        await eventually_answered(lambda: is_metric(server, "stream_server_open_streams", CLIENTS + 1))
        assert await server.metric("stream_server_workers") == WORKERS
        assert await server.metric("stream_server_tail_connected") == 1
        await airflow.set_run(run, "running")
        for events in clients:
            await events.until("run")
        # The rows of the trigger, which might arrive between two requests for metrics, have been read by now.
        rows = await server.metric("stream_server_read_rows_total")
        measured = await server.metric("stream_server_lag_seconds_count")
        await airflow.complete_chain(run)
        for events in clients:
            await events.until("result")
        assert types(await frames_of(connection))[-1] == "end"
        added = await server.metric("stream_server_read_rows_total") - rows
        assert added == await server.metric("stream_server_lag_seconds_count") - measured > 0
    await eventually_answered(lambda: is_metric(server, "stream_server_open_streams", 0))


async def test_human_input_requests_do_not_stop_workers(server: SharedServer, airflow: AirflowSql, run: RunKey) -> None:
    before = len(await read_transitions(airflow, run))
    failed = await server.metric("stream_server_messages_failed_total")
    async with open_streams(server.url, run, CLIENTS) as clients:
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
        assert await server.metric("stream_server_messages_failed_total") == failed
    assert "ERROR" not in "".join(server.read_lines())


async def test_rows_of_an_unknown_kind_do_not_stop_workers(
    server: SharedServer, airflow: AirflowSql, run: RunKey
) -> None:
    skipped = await server.metric("stream_server_journal_rows_skipped_total")
    async with open_streams(server.url, run, CLIENTS) as clients:
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
        assert await server.metric("stream_server_journal_rows_skipped_total") == skipped + 1
    assert [line for line in server.read_lines() if "ERROR" in line and "unknown kind 'unknown'" in line]


async def test_operators_port_is_shared_by_all_workers(server: SharedServer, run: RunKey) -> None:
    assert (await server.get_json("/ready"))["status"] == "ready"
    assert await server.metric("stream_server_workers") == WORKERS
    async with open_streams(server.url, run, CLIENTS), httpx.AsyncClient(base_url=server.url) as client:
        assert await server.metric("stream_server_open_streams") == CLIENTS
        assert (await client.get("/metrics")).status_code == 404


async def test_process_list_contains_no_secret(server: SharedServer) -> None:
    seen = [" ".join(one.cmdline()) for one in [server.parent, *server.workers()]]
    assert len(seen) == WORKERS + 1
    assert not [line for line in seen if PASSWORD in line]


async def test_port_in_use_is_reported(journal: str, server: SharedServer) -> None:
    port = server.url.rpartition(":")[2]
    async with server_process("--port", port, "--workers", "2", STREAM_SERVER_DATABASE_URL=journal) as second:
        _, output = await asyncio.wait_for(second.communicate(), START)
    assert second.returncode == 64
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in output.decode()
