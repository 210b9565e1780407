"""Nothing is lost, duplicated or out of order, whatever happens to transactions, tails and PostgreSQL.

`STREAM_SERVER_SEED` repeats the schedule of a seed; `make check-lossless` runs a long one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from support.lossless import CLUSTER, ROUNDS, SCHEDULES
from support.lossless_clients import Clients
from support.lossless_tails import TaskTail, reconnect_quickly
from support.lossless_writers import connect_when_possible, kill_backend, prepare_workload, read_journal
from support.make_targets import run_to_its_end
from support.postgres import create_database_with_journal, drop_database, running_postgres
from support.waiting import eventually_async


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL with prepared transactions that flushes its WAL at commits only."""
    with running_postgres(CLUSTER) as server:
        yield server


@pytest.fixture
async def database(cluster: EmbeddedPostgres) -> AsyncIterator[str]:
    name = await create_database_with_journal(cluster)
    yield cluster.url(name)
    drop_database(cluster, name)


def test_every_committed_row_comes_exactly_once() -> None:
    seed = os.environ.get("STREAM_SERVER_SEED")
    figures = run_to_its_end("check-lossless", "SECONDS=0", *([f"ARGS=--seed {seed}"] if seed else []))
    for readers in SCHEDULES:
        schedule = figures[readers]
        assert schedule["resyncs"] == {}, "it is the same database, whatever happens to its server"
        assert schedule["rows"] > 0
        assert min(schedule["faults"].values()) >= ROUNDS, "each fault must occur"
        assert schedule["committed out of order"] > 0, "cursors are for this"


UPDATE = "UPDATE task_instance SET try_number = try_number + 1 WHERE map_index = $1"


async def roll_back(database: str) -> int:
    """Roll back some transactions of which a crash leaves no trace; return the id of the last."""
    connection = await asyncpg.connect(database)
    for map_index in range(5):
        await connection.execute("BEGIN")
        number: int = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
        await connection.execute(UPDATE, map_index)
        await connection.execute("ROLLBACK")
    connection.terminate()
    return number


async def crash_and_write(cluster: EmbeddedPostgres, database: str, what: str) -> None:
    """Kill PostgreSQL, or one backend, after which PostgreSQL ends all others and recovers; then write."""
    if what == "PostgreSQL":
        await asyncio.to_thread(cluster.kill)
        await asyncio.to_thread(cluster.start)
    else:
        await kill_backend(database)
    connection = await connect_when_possible(database)
    for number in range(50):
        await connection.execute(UPDATE, number % 10)
    await connection.close()


@pytest.mark.parametrize("what", ["PostgreSQL", "a backend"])
async def test_transaction_ids_reused_after_a_crash_lose_no_rows(
    cluster: EmbeddedPostgres, database: str, what: str
) -> None:
    """After a crash, the ids of transactions that were rolled back after the last commit are reused."""
    workload = await prepare_workload(database, runs=1, instances=10)
    tail = TaskTail(database, "tail")
    with reconnect_quickly():
        await tail.start()
        try:
            await eventually_async(lambda: tail.line.reads, what="the tail follows")
            last_rolled_back = await roll_back(database)
            reads = tail.line.reads
            await eventually_async(lambda: tail.line.reads > reads + 1, what="the tail has read again")
            await tail.stop()
            await crash_and_write(cluster, database, what)
            tail.start_again()
            journal = await read_journal(database, workload)
            assert journal[0].txid <= last_rolled_back, "transaction ids were reused"
            await eventually_async(lambda: tail.line.complete(journal), what="every row has arrived")
        finally:
            await tail.stop()


@pytest.mark.parametrize("what", ["PostgreSQL", "a backend"])
async def test_transaction_ids_reused_after_a_crash_reach_earlier_subscribers(
    cluster: EmbeddedPostgres, database: str, what: str
) -> None:
    """The state of the run was read after the transactions of which the crash leaves no trace."""
    workload = await prepare_workload(database, runs=1, instances=10)
    last_rolled_back = await roll_back(database)
    clients = Clients(database)
    try:
        await clients.start([workload.runs[0]])
        await crash_and_write(cluster, database, what)
        journal = await read_journal(database, workload)
        assert journal[0].txid <= last_rolled_back, "transaction ids were reused"
        (line,) = clients.lines
        await eventually_async(lambda: line.complete(journal), 20, what="every row has arrived")
        clients.check()
    finally:
        await clients.stop()


async def test_a_tail_stops_while_notifications_arrive(database: str) -> None:
    for turns in range(8):
        tail = TaskTail(database, f"tail after {turns} turns of the loop")
        await tail.start()
        try:
            await eventually_async(lambda: tail.line.reads, what="the tail follows")  # noqa: B023 # called at once
            tail.wake()
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            await tail.stop()
