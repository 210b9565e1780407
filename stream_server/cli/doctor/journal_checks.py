"""Checks of Airflow's tables, the journal and its triggers."""

from __future__ import annotations

from stream_server.cli.doctor.airflow_schema import REQUIRED_COLUMNS, VERSION_TABLES, evaluate_schema
from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.session import ReadOnlySession
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.installer import read_status
from stream_server.journal.privileges import READER_PRIVILEGES
from stream_server.journal.queries import load_queries, quote_identifier

PRUNE_DELAY_SECONDS = 600.0
"""Seconds after its time in which a row of the journal must be gone: a server looks every minute or so."""


class JournalChecks:
    """Checks of what the server reads."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits
        self._queries = load_queries("doctor.sql")

    async def check_privileges(self) -> Finding:
        """Tell whether this role may do what a server does, and whether it may do too much."""
        schema = await self._find_airflow_schema()
        wanted = [(one.kind, one.schema or schema, one.name, one.privilege) for one in READER_PRIVILEGES]
        async with self._session.transaction() as connection:
            rows = await connection.fetch(self._queries["privileges"], *map(list, zip(*wanted, strict=True)))
            server = await connection.fetchrow(self._queries["server"])
        assert server is not None, "a SELECT without FROM has one row"
        missing = [
            f"{row['privilege']} on {row['kind']} {'.'.join(filter(None, (row['schema'], row['name'])))}"
            for row in rows
            if row["granted"] is False
        ]
        if missing:
            return problem(
                f"the role {server['role']} lacks {', '.join(missing)}",
                f"run `stream-server install --reader {server['role']}` as the role that owns Airflow's tables",
                missing=missing,
            )
        if server["superuser"]:
            remedy = "use a role of its own, made with `stream-server install --reader ROLE`"
            return warning(f"the role {server['role']} is a superuser", remedy, missing=[])
        if any(row["granted"] is None for row in rows):
            return ok(f"the role {server['role']} lacks nothing on what exists", missing=[])
        return ok(f"the role {server['role']} may do all that a server does", missing=[])

    async def check_airflow_schema(self) -> Finding:
        """Tell which Airflow this database belongs to, and whether its tables are as we know them."""
        schema = await self._find_airflow_schema()
        async with self._session.transaction() as connection:
            rows = await connection.fetch(self._queries["columns"], schema, [*REQUIRED_COLUMNS, *VERSION_TABLES])
            revision = None
            if await connection.fetchval(self._queries["may_read_version"], schema):
                table = f"{quote_identifier(schema)}.alembic_version"
                revision = await connection.fetchval(f"SELECT version_num FROM {table}")  # noqa: S608 # quoted
        return evaluate_schema(schema, {(row["table_name"], row["column_name"]) for row in rows}, revision)

    async def check_triggers(self) -> Finding:
        """Tell how the triggers stand, and what they could not write down."""
        async with self._session.transaction() as connection:
            status = await read_status(connection)
        facts = {"version": status.version, "enabled": status.enabled, "losses": status.losses}
        if status.problems:
            remedy = "stream-server triggers enable" if not status.enabled else "stream-server install"
            return problem("; ".join(status.problems), f"run `{remedy}`", **facts)
        found = f"{len(status.triggers)} triggers stand, version {status.version}"
        if status.losses:
            return warning(
                f"{found}; {status.losses} times since they were installed something could not be written down",
                "PostgreSQL's log says why: look for `stream_server could not record a transition`",
                **facts,
            )
        return ok(f"{found}, nothing was lost", **facts)

    async def check_lag(self) -> Finding:
        """Tell whether the journal has Airflow's newest change of a run."""
        schema = await self._find_airflow_schema()
        async with self._session.transaction() as connection:
            journal = await connection.fetchrow(self._queries["journal"])
            query = self._queries["newest_change"].replace("{airflow}", quote_identifier(schema))
            change_age = await connection.fetchval(query)
        assert journal is not None, "without a journal the query has failed"
        return evaluate_lag(
            newest_age=journal["newest_age"],
            change_age=change_age,
            installed_age=journal["installed_age"],
            pruned=journal["pruned"],
            limits=self._limits,
        )

    async def check_size(self) -> Finding:
        """Tell how large the journal is, and whether pruning and vacuum keep up."""
        async with self._session.transaction() as connection:
            row = await connection.fetchrow(self._queries["journal"])
        assert row is not None, "without a journal the query has failed"
        oldest, retention = row["oldest_age"], self._limits.retention
        age = "" if oldest is None else f", the oldest {oldest / 3600:.1f} h old"
        found = (
            f"about {row['live_rows']} rows and {row['dead_rows']} dead ones{age};"
            f" {_format_megabytes(row['table_bytes'])} and an index of {_format_megabytes(row['index_bytes'])}"
        )
        facts = {name: row[name] for name in ("live_rows", "dead_rows", "table_bytes", "index_bytes", "oldest_age")}
        if retention and oldest is not None and oldest > retention + PRUNE_DELAY_SECONDS:
            remedy = "see that a server runs, and why it does not prune (its log; EXECUTE on stream_server.prune)"
            return warning(f"{found}; it should hold no more than {retention / 3600:g} h", remedy, **facts)
        if row["dead_rows"] > max(self._limits.max_dead_rows, row["live_rows"]):
            last = "never" if row["last_vacuum"] is None else f"last at {row['last_vacuum']:%Y-%m-%d %H:%M}Z"
            remedy = "see whether autovacuum is on, and what holds it back (the check `transactions`)"
            return warning(f"{found}; vacuumed {last}", remedy, **facts)
        return ok(found, **facts)

    async def _find_airflow_schema(self) -> str:
        """Return the schema of Airflow's tables: where they are found, the usual one first."""
        async with self._session.transaction() as connection:
            found = await connection.fetch(self._queries["airflow_schemas"])
        return str(found[0]["nspname"]) if found else "public"


def evaluate_lag(
    *,
    newest_age: float | None,
    change_age: float | None,
    installed_age: float,
    pruned: bool,
    limits: Thresholds,
) -> Finding:
    """Compare the ages of the journal's newest row and of Airflow's newest change of a run, in seconds.

    Of an empty journal that has been pruned nothing can be said, nor of changes before the journal was installed.
    """
    facts = {"newest_age": newest_age, "airflow_age": change_age}
    newest = "it is empty" if newest_age is None else f"its newest row is {newest_age:.0f} s old"
    if change_age is None or change_age > installed_age:
        return ok(f"{newest}; Airflow has changed no run since it was installed", **facts)
    if newest_age is None and pruned:
        return ok("all that there was has been pruned", **facts)
    behind = (installed_age if newest_age is None else newest_age) - change_age
    if behind > limits.max_lag:
        return problem(
            f"{newest}, and Airflow has changed a run {change_age:.0f} s ago",
            "see the check `triggers`; if they stand, something writes to Airflow's tables with triggers switched off"
            " (session_replication_role, logical replication, a restore)",
            **facts,
        )
    return ok(f"{newest}; Airflow's newest change of a run is {change_age:.0f} s old", **facts)


def _format_megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"
