"""Writers that use every kind of transaction on Airflow's tables, after a seeded schedule."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import asyncpg

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.lossless_ledger import Ledger, Row, Token, Transaction, TransactionEnd, Written
from support.waiting import eventually_async

Answer = TypeVar("Answer")

DAG_ID = "lossless"
TASK_ID = "work"
STATES = ("scheduled", "queued", "running", "deferred", "up_for_retry", "success", "failed", "restarting")
HOLDS = (0.0,) * 20 + (0.002, 0.01, 0.03, 0.1, 0.3)
"""Seconds for which a transaction stays open before its next step."""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncio.TimeoutError,
    OSError,
)
REFUSED = (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)

# The writer decides whether a transaction notifies: the functions call this wrapper instead of `pg_notify`.
MUTE_NOTIFICATIONS = """
CREATE FUNCTION stream_server.muffled_notify(channel text, payload text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('lossless.silent', true) IS DISTINCT FROM 'on' THEN
        PERFORM pg_catalog.pg_notify(channel, payload);
    END IF;
END $$;
DO $$
DECLARE
    notifying regprocedure;
BEGIN
    FOR notifying IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'stream_server'::regnamespace
        AND prosrc ~ 'PERFORM pg_catalog.pg_notify' AND proname <> 'muffled_notify'
    LOOP
        EXECUTE replace(pg_get_functiondef(notifying), 'PERFORM pg_catalog.pg_notify',
                        'PERFORM stream_server.muffled_notify');
    END LOOP;
    ASSERT FOUND, 'no function notifies';
END $$;
"""


@dataclass(frozen=True)
class Workload:
    """The task instances that the writers change."""

    runs: Sequence[RunKey]
    instances: int
    """Task instances of each run."""

    first_seq: int
    """ID of the last journal row from before the writers."""


async def prepare_workload(url: str, runs: int, instances: int) -> Workload:
    """Write runs of one mapped task, and have the triggers notify through `muffled_notify`."""
    async with AirflowSql.open(url) as airflow:
        version = await airflow.add_dag(DAG_ID, {TASK_ID: []})
        keys = [RunKey(DAG_ID, f"run_{number}") for number in range(runs)]
        for key in keys:
            await airflow.trigger(key, version, [TASK_ID])
            await airflow.expand(key, version, TASK_ID, instances)
            await airflow.set_run(key, "running")
        await airflow.connection.execute(MUTE_NOTIFICATIONS)
        first = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    return Workload(keys, instances, first)


async def retry_until_answered(query: Callable[[], Awaitable[Answer]], within: float = 30.0) -> Answer:
    """Call `query` again until PostgreSQL responds, which it does not do while it recovers from a fault."""

    async def respond() -> Answer:
        while True:
            try:
                return await query()
            except LOST:
                await asyncio.sleep(0.02)

    return await asyncio.wait_for(respond(), within)


async def connect_when_possible(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """Connect as soon as PostgreSQL accepts connections."""
    return await retry_until_answered(lambda: asyncpg.connect(url, timeout=5))


async def kill_backend(url: str) -> None:
    """Kill a backend with SIGKILL, at which PostgreSQL ends all other backends and recovers.

    Until it has noticed, it accepts clients and then drops them; that time is over on return.
    """
    victim, other = await connect_when_possible(url), await connect_when_possible(url)
    os.kill(await victim.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
    await eventually_async(other.is_closed, what="all backends are thrown out")
    victim.terminate()


async def read_journal(url: str, field: Workload) -> list[Written]:
    """Return the journal rows of the writers."""

    async def read() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await connection.fetch(
                "SELECT txid::text::bigint, id, run_id, map_index, try_number, state, previous_state"
                " FROM stream_server.journal WHERE kind = 'task' AND id > $1 ORDER BY id",
                field.first_seq,
            )
        finally:
            connection.terminate()

    return [Written(Row(*row), txid) for txid, *row in await retry_until_answered(read)]


class Writer:
    """A writer that opens a new session when its connection is lost.

    The short waits are part of the schedule: they make transactions overlap.
    """

    def __init__(self, url: str, field: Workload, ledger: Ledger, name: str, seed: str) -> None:
        self._url = url
        self._field = field
        self._ledger = ledger
        self._name = name
        self._random = random.Random(f"{seed}/{name}")
        self._unsettled: list[tuple[str, bool]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop` is set, and leave no prepared transaction behind."""
        while not stop.is_set() or self._unsettled:
            try:
                connection = await asyncpg.connect(
                    self._url,
                    timeout=5,
                    command_timeout=20,
                    server_settings={"application_name": self._name, "lock_timeout": "2s"},
                )
            except (*LOST, asyncpg.PostgresError):
                await asyncio.sleep(0.02)
                continue
            try:
                await self._finish_prepared(connection)
                while not stop.is_set():
                    await self._transact(connection)
            except (*LOST, asyncpg.ObjectNotInPrerequisiteStateError):
                # The latter: the backend of the lost connection still has its prepared transaction.
                self._ledger.counts["connections lost by writers"] += 1
            finally:
                connection.terminate()

    async def _finish_prepared(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Finish the transaction that was prepared on a lost connection."""
        while self._unsettled:
            gid, commit = self._unsettled[0]
            with suppress(asyncpg.UndefinedObjectError):
                await connection.execute(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{gid}'")
            self._unsettled.pop(0)

    async def _transact(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        one = self._ledger.begin()
        kind = self._random.choices(("plain", "bulk", "savepoints", "two-phase"), (60, 8, 20, 12))[0]
        commit = self._random.random() > 0.15
        try:
            await connection.execute("BEGIN")
            one.txid = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
            await self._pause()
            if self._random.random() < (0.9 if kind == "two-phase" else 0.2):
                # PostgreSQL cannot prepare a transaction that has notified.
                await connection.execute("SELECT set_config('lossless.silent', 'on', true)")
                self._ledger.counts["silent transactions"] += 1
            await self._write(connection, one, kind)
            await self._pause()
            if kind == "two-phase":
                await self._end_in_two_phases(connection, one, commit=commit)
            else:
                await self._end(connection, one, commit=commit)
        except REFUSED:
            self._ledger.counts["deadlocks and timed out locks"] += 1
            await connection.execute("ROLLBACK")
        self._ledger.counts[kind] += 1

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.choice(HOLDS))

    async def _write(self, connection: asyncpg.Connection[asyncpg.Record], one: Transaction, kind: str) -> None:
        if kind == "bulk":
            count = self._random.randint(self._field.instances // 2, self._field.instances)
            one.tokens += await self._update(connection, count)
            return
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            one.tokens += await self._update(connection, 1)
            await self._pause()
        while kind == "savepoints" and self._random.random() < 0.7:
            await connection.execute("SAVEPOINT here")
            tokens = await self._update(connection, self._random.choice((1, 1, 4)))
            await self._pause()
            if self._random.random() < 0.5:
                await connection.execute("ROLLBACK TO SAVEPOINT here")
            else:
                await connection.execute("RELEASE SAVEPOINT here")
                one.tokens += tokens

    async def _update(self, connection: asyncpg.Connection[asyncpg.Record], count: int) -> list[Token]:
        """Change the state of some task instances of a run in one statement, some along with a heartbeat."""
        run = self._random.choice(self._field.runs)
        number = self._ledger.next_number()
        if self._random.random() < 0.1:
            await connection.execute(
                "UPDATE task_instance SET last_heartbeat_at = clock_timestamp() WHERE run_id = $1 AND map_index = $2",
                run.run_id,
                self._random.randrange(self._field.instances),
            )
        rows = await connection.fetch(
            "UPDATE task_instance SET state = $3::text, try_number = $4, updated_at = clock_timestamp(),"
            " start_date = CASE WHEN $3::text = 'running' THEN clock_timestamp() ELSE start_date END"
            " WHERE dag_id = $1 AND run_id = $2 AND map_index = ANY ($5::int[]) RETURNING map_index",
            *run,
            self._random.choice(STATES),
            number,
            self._random.sample(range(self._field.instances), count),
        )
        return [((run.run_id, row["map_index"]), number) for row in rows]

    async def _end(self, connection: asyncpg.Connection[asyncpg.Record], one: Transaction, *, commit: bool) -> None:
        if not commit:
            await connection.execute("ROLLBACK")
            return
        one.fate = TransactionEnd.IN_DOUBT
        await connection.execute("COMMIT")
        one.committed()

    async def _end_in_two_phases(
        self, connection: asyncpg.Connection[asyncpg.Record], one: Transaction, *, commit: bool
    ) -> None:
        gid = f"{self._name}_{self._ledger.next_number()}"
        self._unsettled.append((gid, commit))
        one.fate = TransactionEnd.IN_DOUBT if commit else TransactionEnd.ROLLED_BACK
        try:
            await connection.execute(f"PREPARE TRANSACTION '{gid}'")
        except asyncpg.FeatureNotSupportedError:
            # The transaction has notified, and was rolled back for this reason.
            self._unsettled.pop()
            one.fate = TransactionEnd.ROLLED_BACK
            self._ledger.counts["prepares refused"] += 1
            return
        await self._pause()
        await self._finish_prepared(connection)
        if commit:
            one.committed()
