"""Who rings, and that nobody waits in vain for a ring. The tails here never look by themselves."""

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
from stream_server.journal import pacing as pace
from stream_server.journal.listener import NOTIFY_CHANNEL
from stream_server.journal.tail import IdleState
from support import lossless_tails
from support.airflow_sql import AirflowSql
from support.lossless_tails import TaskTail
from support.waiting import eventually_async

WRITERS, ROUNDS = 6, 8


@pytest.fixture(autouse=True)
def nobody_polls() -> Iterator[None]:
    with patch.object(lossless_tails, "POLL_SECONDS", 3600.0), patch.object(lossless_tails, "CHECK_SECONDS", 3600.0):
        yield


@pytest.fixture
def restless() -> Iterator[None]:
    """Let tails get up and lie down all the time."""
    with (
        patch.object(pace, "BUSY_TRANSACTIONS", 3),
        patch.object(pace, "BUSY_SECONDS", 0.01),
        patch.object(pace, "QUIET_TRANSACTIONS", 2),
        patch.object(pace, "PAUSE_BOUNDS", (0.0005, 0.002)),
    ):
        yield


@asynccontextmanager
async def sleeping(url: str, name: str = "tail") -> AsyncIterator[TaskTail]:
    """Run a tail that has lain down."""
    tail = TaskTail(url, name)
    await tail.start()
    try:
        await eventually_async(lambda: vigil(tail) is IdleState.IDLE, what="a tail asleep")
        yield tail
        tail.check()
    finally:
        await tail.stop()


def vigil(tail: TaskTail) -> IdleState:
    assert tail._tail is not None
    return tail._tail._idle_state


async def get_up(tail: TaskTail) -> None:
    """Have a tail be awake, and stay so."""
    assert tail._tail is not None
    tail._tail._pacing = Sleepless()
    tail.ring()
    await eventually_async(lambda: vigil(tail) is IdleState.ACTIVE, what="a tail awake")


class Sleepless(pace.Pacing):
    busy = True

    def quiet(self, now: float) -> bool:
        return False


def rows(tail: TaskTail) -> int:
    return len(tail.line.rows)


@asynccontextmanager
async def rings(url: str) -> AsyncIterator[list[str]]:
    """Listen, without saying that we sleep."""
    heard: list[str] = []
    connection = await asyncpg.connect(url)
    try:
        await connection.add_listener(NOTIFY_CHANNEL, lambda *told: heard.append(str(told[3])))
        yield heard
    finally:
        await connection.close()


async def all_heard(airflow: AirflowSql, heard: list[str]) -> None:
    """Wait until whatever was rung before has been heard."""
    await airflow.connection.execute("SELECT pg_notify($1, 'last')", NOTIFY_CHANNEL)
    await eventually_async(lambda: "last" in heard)
    heard.remove("last")


async def test_a_transaction_rings_for_who_sleeps_and_for_nobody_else(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with rings(journal) as heard:
        await airflow.set_task(run, "ask", "scheduled")
        await all_heard(airflow, heard)
        assert heard == [], "there is no tail"
        async with sleeping(journal) as tail:
            await all_heard(airflow, heard)
            heard.clear()
            before = rows(tail)
            async with airflow.connection.transaction():
                await airflow.set_task(run, "ask", "queued")
                await airflow.set_task(run, "ask", "running")
            await eventually_async(lambda: rows(tail) == before + 2)
            await all_heard(airflow, heard)
            assert heard == [""], "once for a transaction"
            await get_up(tail)
            await airflow.set_task(run, "ask", "success")
            await eventually_async(lambda: rows(tail) == before + 3)
            await all_heard(airflow, heard)
            assert heard == [""], "an awake tail needs no ring"


async def test_one_that_sleeps_is_rung_for_beside_one_that_is_awake(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with sleeping(journal, "awake") as awake, sleeping(journal, "asleep") as asleep:
        await get_up(awake)
        before = rows(asleep)
        await airflow.set_task(run, "ask", "scheduled")
        await eventually_async(lambda: rows(asleep) == before + 1 == rows(awake))


async def test_what_a_savepoint_rang_is_rung_again_when_it_is_rolled_back(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with sleeping(journal) as tail:
        before = rows(tail)
        async with airflow.connection.transaction():
            savepoint = airflow.connection.transaction()
            await savepoint.start()
            await airflow.set_task(run, "ask", "scheduled")
            await savepoint.rollback()
            await airflow.set_task(run, "ask", "queued")
        await eventually_async(lambda: rows(tail) == before + 1)


async def test_a_tail_sleeps_only_when_silent_transactions_have_ended(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with sleeping(journal) as tail:
        await get_up(tail)
        before = rows(tail)
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.set_task(run, "ask", "scheduled")
        assert tail._tail is not None
        tail._tail._pacing = pace.Pacing()
        await eventually_async(lambda: vigil(tail) is IdleState.SETTLING)
        await transaction.commit()
        await eventually_async(lambda: rows(tail) == before + 1)
        await eventually_async(lambda: vigil(tail) is IdleState.IDLE)


async def test_a_tail_gets_up_where_transactions_wait_for_each_other(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    """Those that ring commit one by one: they are slow then, and never many."""
    ids = [row["id"] for row in await airflow.connection.fetch("SELECT id FROM task_instance")]
    with patch.object(pace, "BUSY_TRANSACTIONS", sys.maxsize):
        async with sleeping(journal) as tail:
            writers = [asyncio.create_task(write_slowly(journal, ids[n % len(ids)])) for n in range(WRITERS)]
            try:
                await eventually_async(lambda: vigil(tail) is IdleState.ACTIVE, what="a tail awake")
            finally:
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)
            await eventually_async(lambda: vigil(tail) is IdleState.IDLE, what="a tail asleep again")


async def test_a_session_may_do_without_the_doorbell(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    """`PREPARE TRANSACTION` fails after a `NOTIFY`."""
    async with rings(journal) as heard, sleeping(journal) as tail:
        await all_heard(airflow, heard)
        heard.clear()
        before = rows(tail)
        await airflow.connection.execute("SET stream_server.doorbell = 'off'")
        await airflow.connection.execute("BEGIN")
        await airflow.set_task(run, "ask", "scheduled")
        if await airflow.connection.fetchval("SELECT current_setting('max_prepared_transactions')::integer"):
            await airflow.connection.execute("PREPARE TRANSACTION 'ours'")
            await airflow.connection.execute("COMMIT PREPARED 'ours'")
        else:
            await airflow.connection.execute("COMMIT")
        await all_heard(airflow, heard)
        assert heard == []
        tail.ring()
        await eventually_async(lambda: rows(tail) == before + 1)


@pytest.mark.usefixtures("restless")
async def test_no_row_waits_for_a_ring_that_does_not_come(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    """Writers come and go so that tails get up and lie down between any two of their steps."""
    ids = [row["id"] for row in await airflow.connection.fetch("SELECT id FROM task_instance")]
    seed = random.randrange(2**32)
    async with sleeping(journal, "one") as one, sleeping(journal, "other") as other:
        turns = [count_turns(one), count_turns(other)]
        dice = random.Random(seed)
        for _ in range(ROUNDS):
            await asyncio.gather(
                *(write(journal, ids[number % len(ids)], random.Random(dice.random())) for number in range(WRITERS))
            )
            await airflow.connection.execute("SELECT pg_sleep($1)", dice.random() * 0.04)
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
    assert all(turn["got up"] > ROUNDS // 2 for turn in turns), turns


def count_turns(tail: TaskTail) -> dict[str, int]:
    """Count how often a tail gets up."""
    assert tail._tail is not None
    turns = {"got up": 0}
    observer = tail._tail._observer
    before = ["ring"]

    def read(why: str, rows: int, seconds: float) -> None:
        turns["got up"] += why == "load" != before[0]
        before[0] = why

    observer.record_read = read  # type: ignore[method-assign]
    return turns


async def write_slowly(url: str, task_instance: object) -> None:
    """Commit again and again, each time some while after writing."""
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


async def write(url: str, task_instance: object, dice: random.Random) -> None:
    """Commit in bursts, some of whose transactions stay open for a while."""
    connection = await asyncpg.connect(url)
    try:
        for _ in range(5):
            for _ in range(dice.randrange(1, 8)):
                async with connection.transaction():
                    await connection.execute(
                        "UPDATE task_instance SET try_number = try_number + 1 WHERE id = $1", task_instance
                    )
                    if dice.random() < 0.2:
                        await connection.execute("SELECT pg_sleep($1)", dice.random() * 0.01)
            await connection.execute("SELECT pg_sleep($1)", dice.random() * 0.02)
    finally:
        await connection.close()
