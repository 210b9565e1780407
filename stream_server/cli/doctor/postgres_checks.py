"""Checks of PostgreSQL itself: version, role in replication, clock, load."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import asyncpg

from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.queries import load_queries

OLDEST_POSTGRES = 130_000
"""`pg_current_xact_id()` and related functions exist from PostgreSQL 13 on."""

CONNECTIONS_NEEDED = 6
"""Most connections of one server: two of its tail, four of its pool."""

QUEUE_PROBLEM_USAGE = 0.5
"""Used share of the notification queue at which PostgreSQL itself logs a warning."""


class PostgresChecks:
    """Checks that need neither Airflow's tables nor the journal."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits
        self._queries = load_queries("doctor.sql")

    async def check_connection(self) -> Finding:
        """Report version, address, role and TLS of the connection."""
        row = await self._fetch_row("server")
        name = row["version"].partition(" ")[0]
        where = "a socket" if row["host"] is None else f"{row['host']}:{row['port']}"
        tls = row["tls"] or "no TLS"
        found = f"PostgreSQL {name} at {where}, database {row['database']} as {row['role']}, {tls}"
        facts = {"version": name, "host": row["host"], "database": row["database"], "role": row["role"]}
        if row["version_number"] < OLDEST_POSTGRES:
            return problem(found, "upgrade PostgreSQL to 13 or newer", **facts, tls=row["tls"])
        if row["tls"] is None and not row["local"]:
            remedy = "add ?sslmode=verify-full (or require) to the URL, unless the network is trusted"
            return warning(found, remedy, **facts, tls=None)
        return ok(found, **facts, tls=row["tls"])

    async def check_primary(self) -> Finding:
        """Check that this is the server that Airflow writes to."""
        row = await self._fetch_row("server")
        if row["in_recovery"]:
            return problem(
                "this is a read replica: it has no NOTIFY, and the server can neither prune rows nor repair triggers",
                "use the URL of the primary; with several hosts, add ?target_session_attrs=read-write",
                in_recovery=True,
            )
        return ok("this is the primary", in_recovery=False)

    async def check_two_phase(self) -> Finding:
        """Check that prepared transactions are disabled: PostgreSQL cannot prepare a transaction with a NOTIFY."""
        most = (await self._fetch_row("server"))["max_prepared_transactions"]
        if most:
            return warning(
                f"max_prepared_transactions is {most}, but transactions that change a task's state cannot be prepared",
                "make sure that no client prepares transactions on Airflow's tables, or set it to 0",
                max_prepared_transactions=most,
            )
        return ok("prepared transactions are disabled", max_prepared_transactions=0)

    async def check_clock(self) -> Finding:
        """Compare the clocks. Half of the round trip is the tolerance."""
        async with self._session.transaction() as connection:
            began = time.time()
            server_time: datetime = await connection.fetchval(self._queries["clock"])
            ended = time.time()
        ahead = server_time.astimezone(timezone.utc).timestamp() - (began + ended) / 2
        tolerance = (ended - began) / 2
        found = f"PostgreSQL's clock differs by {ahead:+.3f} s from this host's"
        if abs(ahead) > self._limits.max_clock_difference + tolerance:
            return warning(found, "synchronize the clocks (chrony, NTP): frames have PostgreSQL's time", ahead=ahead)
        return ok(found, ahead=ahead)

    async def check_queue(self) -> Finding:
        """Check the size of the notification queue."""
        async with self._session.transaction() as connection:
            usage = float(await connection.fetchval(self._queries["queue"]))
        found = f"the notification queue is {usage:.1%} full"
        remedy = (
            "find the listening session that is idle in a transaction (pg_stat_activity) and end it; when the queue is"
            " full, Airflow's transactions fail"
        )
        if usage > QUEUE_PROBLEM_USAGE:
            return problem(found, remedy, usage=usage)
        return warning(found, remedy, usage=usage) if usage > self._limits.max_queue_usage else ok(found, usage=usage)

    async def check_connections(self) -> Finding:
        """Check that enough connections are free for a server."""
        row = await self._fetch_row("connections")
        most, used = row["most"], row["used"]
        if row["role_limit"] is not None and row["role_limit"] - row["used_by_role"] < most - used:
            most, used = row["role_limit"], row["used_by_role"]
        found = f"{used} of {most} connections are in use, {row['ours']} of them by stream_server"
        facts = {"ours": row["ours"], "used": used, "most": most}
        if most - used < CONNECTIONS_NEEDED or used > most * self._limits.max_connection_usage:
            remedy = f"raise max_connections; a server needs up to {CONNECTIONS_NEEDED} (STREAM_SERVER_POOL_SIZE + 2)"
            return warning(found, remedy, **facts)
        return ok(found, **facts)

    async def check_transactions(self) -> Finding:
        """Check for transactions that prevent vacuum from removing the journal's dead rows."""
        async with self._session.transaction() as connection:
            rows = await connection.fetch(self._queries["transactions"])
        return evaluate_transactions(rows, self._limits)

    async def _fetch_row(self, query: str) -> asyncpg.Record:
        async with self._session.transaction() as connection:
            row = await connection.fetchrow(self._queries[query])
        assert row is not None, "these queries have one row"
        return row


def evaluate_transactions(rows: list[asyncpg.Record], limits: Thresholds) -> Finding:
    """Return the finding about open transactions, prepared transactions and replication slots.

    Args:
        rows: Result of the query `transactions`, ordered by the number of transactions held back.
        limits: The limits.
    """
    facts = {"open": len(rows), "held": max((row["held"] or 0 for row in rows), default=0)}
    idle = [row for row in rows if row["idle"] and (row["in_state"] or 0) > limits.max_idle_transaction_age]
    ours = [row for row in idle if row["ours"]]
    if ours:
        return problem(
            f"{ours[0]['name']} has been idle in its transaction for {ours[0]['in_state']:.0f} s",
            "this is a bug in stream_server: restart that server and report the bug",
            **facts,
        )
    long = [row for row in rows if (row["seconds"] or 0) > limits.max_transaction_age]
    for row in (*idle, *long):
        state = f"idle in its transaction for {row['in_state']:.0f} s" if row["idle"] else f"{row['seconds']:.0f} s old"
        return warning(
            f"{row['kind']} {row['name']} is {state}; vacuum cannot remove rows deleted since then",
            "end it (pg_terminate_backend, ROLLBACK PREPARED), and set idle_in_transaction_session_timeout",
            **facts,
        )
    for row in rows:
        if (row["held"] or 0) > limits.max_transactions_held:
            return warning(
                f"{row['kind']} {row['name']} keeps vacuum from removing the dead rows of {row['held']} transactions",
                "end it; drop an unused replication slot (pg_drop_replication_slot)",
                **facts,
            )
    unseen = sum(row["kind"] == "session" and row["seconds"] is None for row in rows)
    hidden = f"; {unseen} of unknown age, because this role lacks pg_read_all_stats" if unseen else ""
    return ok(f"{len(rows)} open, none for long{hidden}", **facts)
