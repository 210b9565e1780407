"""Checks of the doorbell: is a NOTIFY of one session heard by another one, and how soon?"""

from __future__ import annotations

import asyncio
import statistics
import time
from uuid import uuid4

import anyio
import asyncpg

from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.session import ReadOnlySession
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.connection import close_connection, map_postgres_errors

NOTIFY_ROUNDS = 5
"""How often the bell is rung."""

NOTIFY_TIMEOUT_SECONDS = 2.0
"""What is not heard by then is not heard."""

BACKEND_PID_QUERY = "SELECT pg_backend_pid()"

DIRECT_URL_REMEDY = "give a URL that leads to PostgreSQL itself, or through a pool in session mode"


class NotifyChecks:
    """Checks that need two connections: one listens, and the other one rings, as Airflow does."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits

    async def check_pooler(self) -> Finding:
        """Tell whether something that shares sessions among clients is between us and PostgreSQL.

        A pooler gives each client a made-up key for cancelling, in which the number of the process is not that of the
        session's. And where two clients take turns, each of them meets the other's session.
        """
        connection = await self._session.connect()
        try:
            with map_postgres_errors():
                announced = connection.get_server_pid()
                process = int(await connection.fetchval(BACKEND_PID_QUERY))
                shares = await self._shares_sessions(connection)
        finally:
            await close_connection(connection)
        if shares:
            return problem(
                "a pooler gives each transaction another session: the doorbell is not heard, and settings of one client"
                " meet others",
                DIRECT_URL_REMEDY,
                pooler="transaction",
            )
        if announced != process:
            found = "a pooler is in the way; a session seems to be kept for a client (see the check `doorbell`)"
            return ok(found, pooler="session")
        return ok("none: the session is our own", pooler=None)

    async def check_notify(self) -> Finding:
        """Ring as Airflow's transactions do, and measure until it is heard."""
        connection = await self._session.connect()
        try:
            with map_postgres_errors():
                heard = await self._measure_notify(connection)
        finally:
            await close_connection(connection)
        if heard is None:
            return problem(
                "a read replica has none: the server looks twice a second instead", "see the check `primary`"
            )
        times, switched_off = heard
        if len(times) < NOTIFY_ROUNDS:
            return problem(
                f"ring {len(times) + 1} was not heard in {NOTIFY_TIMEOUT_SECONDS:g} s:"
                " the server looks twice a second instead",
                DIRECT_URL_REMEDY,
            )
        milliseconds = statistics.median(times) * 1000
        found = f"heard after {milliseconds:.1f} ms (median of {NOTIFY_ROUNDS}; the slowest {max(times) * 1000:.1f} ms)"
        facts = {"median_ms": milliseconds, "worst_ms": max(times) * 1000}
        if switched_off:
            return warning(
                f"{found}, but switched off by the setting stream_server.doorbell: the server looks twice a second",
                "reset the setting (ALTER DATABASE … RESET stream_server.doorbell), if that was not meant",
                **facts,
            )
        if milliseconds > self._limits.max_notify_delay * 1000:
            return warning(
                found, "run the server closer to the database, or see what keeps its commits waiting", **facts
            )
        return ok(found, **facts)

    async def _shares_sessions(self, connection: asyncpg.Connection[asyncpg.Record]) -> bool:
        """Tell whether the transactions of one client meet sessions that another client's have met."""
        ours, theirs = set(), set()
        for _ in range(3):
            async with connection.transaction(readonly=True):
                ours.add(await connection.fetchval(BACKEND_PID_QUERY))
                answered = False
                with anyio.move_on_after(NOTIFY_TIMEOUT_SECONDS):
                    theirs.add(await self._fetch_other_backend_pid())
                    answered = True
                if not answered:
                    # The only session of a pool is taken while we are in a transaction.
                    return True
            # What was given back first is free first, or last: whichever it is, the turns differ.
            theirs.add(await self._fetch_other_backend_pid())
        return len(ours) > 1 or bool(ours & theirs)

    async def _fetch_other_backend_pid(self) -> int:
        async with self._session.transaction() as other:
            return int(await other.fetchval(BACKEND_PID_QUERY))

    async def _measure_notify(self, listener: asyncpg.Connection[asyncpg.Record]) -> tuple[list[float], bool] | None:
        """Return the seconds after which each ring was heard, and whether Airflow's transactions are told not to ring.

        A read replica neither rings nor listens; then, nothing is returned.
        """
        # A channel of our own: nobody else is woken.
        channel = f"stream_server_doctor_{uuid4().hex[:8]}"
        heard: asyncio.Queue[float] = asyncio.Queue()
        try:
            # Through a pooler, the parts of a statement outside of a transaction may meet different sessions.
            async with listener.transaction():
                await listener.add_listener(channel, lambda *_: heard.put_nowait(time.perf_counter()))
        except asyncpg.ReadOnlySQLTransactionError:
            return None
        times = []
        for _ in range(NOTIFY_ROUNDS):
            async with self._session.transaction() as ringer:
                setting = await ringer.fetchval("SELECT current_setting('stream_server.doorbell', true)")
                await ringer.execute(f"NOTIFY {channel}")
                began = time.perf_counter()
            with anyio.move_on_after(NOTIFY_TIMEOUT_SECONDS) as waiting:
                times.append(await heard.get() - began)
            if waiting.cancelled_caught:
                break
        return times, setting == "off"
