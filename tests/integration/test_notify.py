"""When transactions notify, and that no row waits for a notification that does not come. The tails do not poll."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from unittest.mock import patch

import asyncpg
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal import pacing
from stream_server.journal.listener import NOTIFY_CHANNEL
from stream_server.journal.tail import IdleState, ReadReason
from support import lossless_tails
from support.airflow_sql import AirflowSql
from support.lossless_tails import TaskTail
from support.waiting import eventually_async

WRITERS, ROUNDS = 6, 8


@pytest.fixture(autouse=True)
def no_polling() -> Iterator[None]:
    with patch.object(lossless_tails, "POLL_SECONDS", 3600.0), patch.object(lossless_tails, "CHECK_SECONDS", 3600.0):
        yield


@pytest.fixture
def eager_tails() -> Iterator[None]:
    """Let tails change between active and idle all the time."""
    with (
        patch.object(pacing, "BUSY_TRANSACTIONS", 3),
        patch.object(pacing, "BUSY_SECONDS", 0.01),
        patch.object(pacing, "QUIET_TRANSACTIONS", 2),
        patch.object(pacing, "PAUSE_BOUNDS", (0.0005, 0.002)),
    ):
        yield


@asynccontextmanager
async def idle_tail(url: str, name: str = "tail") -> AsyncIterator[TaskTail]:
    """Run a tail, and wait until it is idle."""
    tail = TaskTail(url, name)
    await tail.start()
    try:
        await eventually_async(lambda: tail.idle_state is IdleState.IDLE, what="the tail is idle")
        yield tail
        tail.check()
    finally:
        await tail.stop()


async def make_active(tail: TaskTail) -> None:
    """Make a tail active, for good."""
    tail.set_pacing(AlwaysBusy())
    tail.wake()
    await eventually_async(lambda: tail.idle_state is IdleState.ACTIVE, what="the tail is active")


class AlwaysBusy(pacing.Pacing):
    is_busy = True

    def is_quiet(self, now: float) -> bool:
        return False


def row_count(tail: TaskTail) -> int:
    return len(tail.line.rows)


@asynccontextmanager
async def notifications(url: str) -> AsyncIterator[list[str]]:
    """Listen without the idle-consumer lock, and collect the payloads."""
    received: list[str] = []
    connection = await asyncpg.connect(url)
    try:
        await connection.add_listener(NOTIFY_CHANNEL, lambda *arguments: received.append(str(arguments[3])))
        yield received
    finally:
        await connection.close()


async def wait_for_notifications(airflow: AirflowSql, received: list[str]) -> None:
    """Wait until all earlier notifications have arrived."""
    await airflow.connection.execute("SELECT pg_notify($1, 'last')", NOTIFY_CHANNEL)
    await eventually_async(lambda: "last" in received)
    received.remove("last")


async def test_a_transaction_notifies_only_if_a_tail_is_idle(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    async with notifications(journal) as received:
        await airflow.set_task(run, "ask", "scheduled")
        await wait_for_notifications(airflow, received)
        assert received == [], "there is no tail"
        async with idle_tail(journal) as tail:
            await wait_for_notifications(airflow, received)
            received.clear()
            before = row_count(tail)
            async with airflow.connection.transaction():
                await airflow.set_task(run, "ask", "queued")
                await airflow.set_task(run, "ask", "running")
            await eventually_async(lambda: row_count(tail) == before + 2)
            await wait_for_notifications(airflow, received)
            assert received == [""], "once per transaction"
            await make_active(tail)
            await airflow.set_task(run, "ask", "success")
            await eventually_async(lambda: row_count(tail) == before + 3)
            await wait_for_notifications(airflow, received)
            assert received == [""], "an active tail needs no notification"


async def test_an_idle_tail_is_notified_beside_an_active_one(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    async with idle_tail(journal, "active") as active, idle_tail(journal, "idle") as idle:
        await make_active(active)
        before = row_count(idle)
        await airflow.set_task(run, "ask", "scheduled")
        await eventually_async(lambda: row_count(idle) == before + 1 == row_count(active))


async def test_a_transaction_notifies_after_a_rolled_back_savepoint_that_had_notified(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with idle_tail(journal) as tail:
        before = row_count(tail)
        async with airflow.connection.transaction():
            savepoint = airflow.connection.transaction()
            await savepoint.start()
            await airflow.set_task(run, "ask", "scheduled")
            await savepoint.rollback()
            await airflow.set_task(run, "ask", "queued")
        await eventually_async(lambda: row_count(tail) == before + 1)


async def test_a_tail_is_idle_only_when_unnotified_transactions_have_ended(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with idle_tail(journal) as tail:
        await make_active(tail)
        before = row_count(tail)
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.set_task(run, "ask", "scheduled")
        tail.set_pacing(pacing.Pacing())
        await eventually_async(lambda: tail.idle_state is IdleState.SETTLING)
        await transaction.commit()
        await eventually_async(lambda: row_count(tail) == before + 1)
        await eventually_async(lambda: tail.idle_state is IdleState.IDLE)


async def test_a_tail_becomes_active_if_transactions_wait_for_each_other(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    """Transactions that notify commit one after the other, so their rate stays low."""
    ids = [row["id"] for row in await airflow.connection.fetch("SELECT id FROM task_instance")]
    with patch.object(pacing, "BUSY_TRANSACTIONS", sys.maxsize):
        async with idle_tail(journal) as tail:
            writers = [asyncio.create_task(write_slowly(journal, ids[n % len(ids)])) for n in range(WRITERS)]
            try:
                await eventually_async(lambda: tail.idle_state is IdleState.ACTIVE, what="the tail is active")
            finally:
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)
            await eventually_async(lambda: tail.idle_state is IdleState.IDLE, what="the tail is idle again")


async def test_a_session_can_disable_notifications(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    """`PREPARE TRANSACTION` fails after a `NOTIFY`."""
    async with notifications(journal) as received, idle_tail(journal) as tail:
        await wait_for_notifications(airflow, received)
        received.clear()
        before = row_count(tail)
        await airflow.connection.execute("SET stream_server.doorbell = 'off'")
        await airflow.connection.execute("BEGIN")
        await airflow.set_task(run, "ask", "scheduled")
        if await airflow.connection.fetchval("SELECT current_setting('max_prepared_transactions')::integer"):
            await airflow.connection.execute("PREPARE TRANSACTION 'ours'")
            await airflow.connection.execute("COMMIT PREPARED 'ours'")
        else:
            await airflow.connection.execute("COMMIT")
        await wait_for_notifications(airflow, received)
        assert received == []
        tail.wake()
        await eventually_async(lambda: row_count(tail) == before + 1)


@pytest.mark.usefixtures("eager_tails")
async def test_no_row_waits_for_a_missing_notification(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    """Bursts of writers make tails change between active and idle at any step of the writers."""
    ids = [row["id"] for row in await airflow.connection.fetch("SELECT id FROM task_instance")]
    seed = random.randrange(2**32)
    async with idle_tail(journal, "one") as one, idle_tail(journal, "other") as other:
        counts = [count_wake_ups(one), count_wake_ups(other)]
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            await asyncio.gather(
                *(write(journal, ids[number % len(ids)], random.Random(rng.random())) for number in range(WRITERS))
            )
            await airflow.connection.execute("SELECT pg_sleep($1)", rng.random() * 0.04)
        written = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
        committed = {row["id"] for row in await airflow.connection.fetch("SELECT id FROM stream_server.journal")}
        first = min(row.seq for row in one.line.rows)
        expected = {seq for seq in committed if seq >= first}
        for tail in (one, other):
            await eventually_async(
                lambda tail=tail: {row.seq for row in tail.line.rows} >= expected,  # type: ignore[misc]
                10,
                f"every row up to {written} read by {tail.line.name} (seed {seed})",
            )
    assert all(count["wake-ups"] > ROUNDS // 2 for count in counts), counts


def count_wake_ups(tail: TaskTail) -> dict[str, int]:
    """Count how often a tail becomes active."""
    count = {"wake-ups": 0}
    last_reason: list[ReadReason] = ["ring"]

    def record_read(reason: ReadReason, rows: int, seconds: float) -> None:
        count["wake-ups"] += reason == "load" != last_reason[0]
        last_reason[0] = reason

    tail.on_read(record_read)
    return count


async def write_slowly(url: str, task_instance: object) -> None:
    """Commit again and again, each time 50 ms after the write."""
    connection = await asyncpg.connect(url)
    try:
        while True:
            async with connection.transaction():
                await connection.execute(
                    "UPDATE task_instance SET try_number = try_number + 1 WHERE id = $1", task_instance
                )
                await connection.execute("SELECT pg_sleep(0.05)")
    finally:
        await connection.close()


async def write(url: str, task_instance: object, rng: random.Random) -> None:
    """Commit in bursts, with some transactions that stay open for a while."""
    connection = await asyncpg.connect(url)
    try:
        for _ in range(5):
            for _ in range(rng.randrange(1, 8)):
                async with connection.transaction():
                    await connection.execute(
                        "UPDATE task_instance SET try_number = try_number + 1 WHERE id = $1", task_instance
                    )
                    if rng.random() < 0.2:
                        await connection.execute("SELECT pg_sleep($1)", rng.random() * 0.01)
            await connection.execute("SELECT pg_sleep($1)", rng.random() * 0.02)
    finally:
        await connection.close()
