"""Checks of LISTEN and NOTIFY: does one session receive the notifications of another, and after which time?"""

from __future__ import annotations

import asyncio
import statistics
import time
from uuid import uuid4

import anyio
import asyncpg

from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.connection import close_connection, map_postgres_errors

NOTIFY_ROUNDS = 5
"""Number of test notifications."""

NOTIFY_TIMEOUT_SECONDS = 2.0
"""Timeout of one notification."""

BACKEND_PID_QUERY = "SELECT pg_backend_pid()"

DIRECT_URL_REMEDY = "use a URL of PostgreSQL itself, or of a pooler in session mode"


class NotifyChecks:
    """Checks with two connections: one listens, the other sends notifications, as Airflow's transactions do."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits

    async def check_pooler(self) -> Finding:
        """Check whether a connection pooler is between this host and PostgreSQL.

        A pooler gives each client an invented cancellation key, whose process ID is not that of the session. In
        transaction mode, two clients that take turns get each other's sessions.
        """
        connection = await self._session.connect()
        try:
            with map_postgres_errors():
                announced_pid = connection.get_server_pid()
                backend_pid = int(await connection.fetchval(BACKEND_PID_QUERY))
                is_shared = await self._shares_sessions(connection)
        finally:
            await close_connection(connection)
        if is_shared:
            return problem(
                "a pooler in transaction mode: notifications do not arrive, and settings of one client affect others",
                DIRECT_URL_REMEDY,
                pooler="transaction",
            )
        if announced_pid != backend_pid:
            found = "a pooler, apparently in session mode (see the check `doorbell`)"
            return ok(found, pooler="session")
        return ok("no pooler", pooler=None)

    async def check_notify(self) -> Finding:
        """Send notifications as Airflow's transactions do, and measure the time until they arrive."""
        connection = await self._session.connect()
        try:
            with map_postgres_errors():
                measured = await self._measure_notify(connection)
        finally:
            await close_connection(connection)
        if measured is None:
            return problem("a read replica has no NOTIFY; the server polls twice a second", "see the check `primary`")
        times, is_disabled = measured
        if len(times) < NOTIFY_ROUNDS:
            return problem(
                f"notification {len(times) + 1} did not arrive within {NOTIFY_TIMEOUT_SECONDS:g} s; the server polls"
                " twice a second",
                DIRECT_URL_REMEDY,
            )
        milliseconds = statistics.median(times) * 1000
        found = (
            f"notifications arrive after {milliseconds:.1f} ms (median of {NOTIFY_ROUNDS}; maximum"
            f" {max(times) * 1000:.1f} ms)"
        )
        facts = {"median_ms": milliseconds, "worst_ms": max(times) * 1000}
        if is_disabled:
            return warning(
                f"{found}, but the setting stream_server.doorbell disables them; the server polls twice a second",
                "reset the setting (ALTER DATABASE … RESET stream_server.doorbell), unless this is intended",
                **facts,
            )
        if milliseconds > self._limits.max_notify_delay * 1000:
            return warning(found, "run the server closer to the database, or find out why commits are slow", **facts)
        return ok(found, **facts)

    async def _shares_sessions(self, connection: asyncpg.Connection[asyncpg.Record]) -> bool:
        """Whether the transactions of one client run in sessions that another client has used."""
        own_pids, other_pids = set(), set()
        for _ in range(3):
            async with connection.transaction(readonly=True):
                own_pids.add(await connection.fetchval(BACKEND_PID_QUERY))
                has_answer = False
                with anyio.move_on_after(NOTIFY_TIMEOUT_SECONDS):
                    other_pids.add(await self._fetch_other_backend_pid())
                    has_answer = True
                if not has_answer:
                    # The pool has one session, and the open transaction occupies it.
                    return True
            # A second query, because a pool may hand out the session that was released first, or the one released last.
            other_pids.add(await self._fetch_other_backend_pid())
        return len(own_pids) > 1 or bool(own_pids & other_pids)

    async def _fetch_other_backend_pid(self) -> int:
        async with self._session.transaction() as other:
            return int(await other.fetchval(BACKEND_PID_QUERY))

    async def _measure_notify(self, listener: asyncpg.Connection[asyncpg.Record]) -> tuple[list[float], bool] | None:
        """Return the delay of each notification in seconds, and whether the setting disables those of Airflow.

        A read replica allows neither LISTEN nor NOTIFY; then, return `None`.
        """
        # A random channel name, so that no server wakes up.
        channel = f"stream_server_doctor_{uuid4().hex[:8]}"
        arrivals: asyncio.Queue[float] = asyncio.Queue()
        try:
            # In a transaction, because a pooler may use several sessions for statements outside of one.
            async with listener.transaction():
                await listener.add_listener(channel, lambda *_: arrivals.put_nowait(time.perf_counter()))
        except asyncpg.ReadOnlySQLTransactionError:
            return None
        times = []
        for _ in range(NOTIFY_ROUNDS):
            async with self._session.transaction() as sender:
                setting = await sender.fetchval("SELECT current_setting('stream_server.doorbell', true)")
                await sender.execute(f"NOTIFY {channel}")
                sent_at = time.perf_counter()
            with anyio.move_on_after(NOTIFY_TIMEOUT_SECONDS) as timeout:
                times.append(await arrivals.get() - sent_at)
            if timeout.cancelled_caught:
                break
        return times, setting == "off"
