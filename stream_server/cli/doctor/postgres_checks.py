"""Checks of PostgreSQL itself: what is it, and will it be quick?"""

from __future__ import annotations

import time
from datetime import datetime, timezone

import asyncpg

from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.session import ReadOnlySession
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.queries import load_queries

OLDEST_POSTGRES = 130_000
"""`pg_current_xact_id()` and its like exist from PostgreSQL 13 on."""

CONNECTIONS_NEEDED = 6
"""What one server takes at most: two of its tail, four of its pool."""

QUEUE_PROBLEM_USAGE = 0.5
"""Share of the queue of notifications from which on PostgreSQL itself warns."""


class PostgresChecks:
    """Checks that need a connection, and neither Airflow nor the journal."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits
        self._queries = load_queries("doctor.sql")

    async def check_connection(self) -> Finding:
        """Tell what answers."""
        row = await self._fetch_row("server")
        name = row["version"].partition(" ")[0]
        where = "a socket" if row["host"] is None else f"{row['host']}:{row['port']}"
        tls = row["tls"] or "no TLS"
        found = f"PostgreSQL {name} at {where}, database {row['database']} as {row['role']}, {tls}"
        facts = {"version": name, "host": row["host"], "database": row["database"], "role": row["role"]}
        if row["version_number"] < OLDEST_POSTGRES:
            return problem(found, "upgrade PostgreSQL to 13 or newer", **facts, tls=row["tls"])
        if row["tls"] is None and not row["local"]:
            remedy = "add ?sslmode=verify-full (or require) to the URL, if others can listen in on the network"
            return warning(found, remedy, **facts, tls=None)
        return ok(found, **facts, tls=row["tls"])

    async def check_primary(self) -> Finding:
        """Tell whether this is the server that Airflow writes to."""
        row = await self._fetch_row("server")
        if row["in_recovery"]:
            return problem(
                "this is a read replica: it has no doorbell, and old rows and missing triggers are not seen to",
                "give a URL of the primary; with several hosts, add ?target_session_attrs=read-write",
                in_recovery=True,
            )
        return ok("this is the primary", in_recovery=False)

    async def check_two_phase(self) -> Finding:
        """Tell whether prepared transactions are possible: after a NOTIFY they are refused."""
        most = (await self._fetch_row("server"))["max_prepared_transactions"]
        if most:
            return warning(
                f"max_prepared_transactions is {most}: a transaction that changes a task's state can't be prepared",
                "see to it that nothing prepares transactions that write to Airflow's tables, or set it to 0",
                max_prepared_transactions=most,
            )
        return ok("no transaction can be prepared", max_prepared_transactions=0)

    async def check_clock(self) -> Finding:
        """Compare the clocks; the way to PostgreSQL and back counts for neither."""
        async with self._session.transaction() as connection:
            began = time.time()
            theirs: datetime = await connection.fetchval(self._queries["clock"])
            ended = time.time()
        ahead = theirs.astimezone(timezone.utc).timestamp() - (began + ended) / 2
        doubt = (ended - began) / 2
        found = f"PostgreSQL's clock differs by {ahead:+.3f} s from this host's"
        if abs(ahead) > self._limits.max_clock_difference + doubt:
            return warning(found, "synchronize the clocks (chrony, NTP): times in frames are PostgreSQL's", ahead=ahead)
        return ok(found, ahead=ahead)

    async def check_queue(self) -> Finding:
        """Tell how full the queue of notifications is."""
        async with self._session.transaction() as connection:
            usage = float(await connection.fetchval(self._queries["queue"]))
        found = f"the queue of notifications is {usage:.1%} full"
        remedy = (
            "find the session that listens and stays in a transaction (pg_stat_activity: idle in transaction), and end"
            " it: when the queue is full, Airflow's transactions fail"
        )
        if usage > QUEUE_PROBLEM_USAGE:
            return problem(found, remedy, usage=usage)
        return warning(found, remedy, usage=usage) if usage > self._limits.max_queue_usage else ok(found, usage=usage)

    async def check_connections(self) -> Finding:
        """Tell whether there are connections left for a server."""
        row = await self._fetch_row("connections")
        most, used = row["most"], row["used"]
        if row["role_limit"] is not None and row["role_limit"] - row["used_by_role"] < most - used:
            most, used = row["role_limit"], row["used_by_role"]
        found = f"{used} of {most} connections are taken, {row['ours']} of them by stream_server"
        facts = {"ours": row["ours"], "used": used, "most": most}
        if most - used < CONNECTIONS_NEEDED or used > most * self._limits.max_connection_usage:
            remedy = f"raise max_connections; a server takes up to {CONNECTIONS_NEEDED} (STREAM_SERVER_POOL_SIZE + 2)"
            return warning(found, remedy, **facts)
        return ok(found, **facts)

    async def check_transactions(self) -> Finding:
        """Tell what keeps vacuum from the journal's dead rows, and whether a session of ours does."""
        async with self._session.transaction() as connection:
            rows = await connection.fetch(self._queries["transactions"])
        return evaluate_transactions(rows, self._limits)

    async def _fetch_row(self, query: str) -> asyncpg.Record:
        async with self._session.transaction() as connection:
            row = await connection.fetchrow(self._queries[query])
        assert row is not None, "such a SELECT has one row"
        return row


def evaluate_transactions(rows: list[asyncpg.Record], limits: Thresholds) -> Finding:
    """Judge open transactions, prepared ones and replication slots, those first that hold back the most."""
    facts = {"open": len(rows), "held": max((row["held"] or 0 for row in rows), default=0)}
    idle = [row for row in rows if row["idle"] and (row["in_state"] or 0) > limits.max_idle_transaction_age]
    ours = [row for row in idle if row["ours"]]
    if ours:
        return problem(
            f"{ours[0]['who']} has been idle in its transaction for {ours[0]['in_state']:.0f} s",
            "this is a fault of stream_server: restart that server, and report it",
            **facts,
        )
    long = [row for row in rows if (row["seconds"] or 0) > limits.max_transaction_age]
    for row in (*idle, *long):
        doing = f"idle in its transaction for {row['in_state']:.0f} s" if row["idle"] else f"{row['seconds']:.0f} s old"
        return warning(
            f"{row['kind']} {row['who']} is {doing}; vacuum can't remove what has been deleted since",
            "end it (pg_terminate_backend, ROLLBACK PREPARED), and set idle_in_transaction_session_timeout",
            **facts,
        )
    for row in rows:
        if (row["held"] or 0) > limits.max_transactions_held:
            return warning(
                f"{row['kind']} {row['who']} keeps what {row['held']} transactions have left from vacuum",
                "end it; drop a replication slot that nobody uses (pg_drop_replication_slot)",
                **facts,
            )
    unseen = sum(row["kind"] == "session" and row["seconds"] is None for row in rows)
    doubt = f"; of {unseen} it can't be told without pg_read_all_stats" if unseen else ""
    return ok(f"{len(rows)} open, none for long{doubt}", **facts)
