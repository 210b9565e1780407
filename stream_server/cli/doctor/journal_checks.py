"""Checks of Airflow's tables, the journal and its triggers."""

from __future__ import annotations

from stream_server.cli.doctor.airflow_schema import evaluate_schema
from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.journal.airflow_tables import read_airflow_tables
from stream_server.journal.privileges import READER_PRIVILEGES
from stream_server.journal.queries import load_queries, quote_identifier
from stream_server.journal.status import read_status

PRUNE_DELAY_SECONDS = 600.0
"""Delay after the retention until a row must be deleted; a server prunes about once a minute."""


class JournalChecks:
    """Checks of the tables and triggers that the server depends on."""

    def __init__(self, session: ReadOnlySession, limits: Thresholds) -> None:
        self._session = session
        self._limits = limits
        self._queries = load_queries("doctor.sql")

    async def check_privileges(self) -> Finding:
        """Check that this role has the privileges that a server needs, and is not a superuser."""
        schema = await self._find_airflow_schema()
        wanted = [(grant.kind, grant.schema or schema, grant.name, grant.privilege) for grant in READER_PRIVILEGES]
        async with self._session.transaction() as connection:
            rows = await connection.fetch(self._queries["privileges"], *map(list, zip(*wanted, strict=True)))
            server = await connection.fetchrow(self._queries["server"])
        assert server is not None, "a SELECT without FROM has one row"
        lacking = {
            f"{row['privilege']} on {row['kind']} {'.'.join(filter(None, (row['schema'], row['name'])))}": consequence
            for row, consequence in zip(rows, (grant.consequence for grant in READER_PRIVILEGES), strict=True)
            if row["granted"] is False
        }
        if lacking:
            found = f"the role {server['role']} lacks {', '.join(lacking)}"
            remedy = f"run `stream-server install --reader {server['role']}` as the role that owns Airflow's tables"
            consequences = [consequence for consequence in lacking.values() if consequence is not None]
            if len(consequences) < len(lacking):
                return problem(found, remedy, missing=list(lacking))
            return warning(f"{found}: {'; '.join(consequences)}", remedy, missing=list(lacking))
        if server["superuser"]:
            remedy = "use a dedicated role, created with `stream-server install --reader ROLE`"
            return warning(f"the role {server['role']} is a superuser", remedy, missing=[])
        if any(row["granted"] is None for row in rows):
            return ok(f"the role {server['role']} lacks no privilege on the existing objects", missing=[])
        return ok(f"the role {server['role']} has all privileges that a server needs", missing=[])

    async def check_airflow_schema(self) -> Finding:
        """Check version and tables of Airflow in this database."""
        schema = await self._find_airflow_schema()
        async with self._session.transaction() as connection:
            return evaluate_schema(await read_airflow_tables(connection, schema))

    async def check_triggers(self) -> Finding:
        """Check that the triggers are installed and enabled, and have recorded every change."""
        async with self._session.transaction() as connection:
            status = await read_status(connection)
        facts = {"version": status.version, "enabled": status.enabled, "losses": status.losses}
        if status.problems:
            remedy = "stream-server triggers enable" if not status.enabled else "stream-server install"
            return problem("; ".join(status.problems), f"run `{remedy}`", **facts)
        found = f"{len(status.triggers)} triggers are enabled, version {status.version}"
        causes, remedies = [], []
        if status.outdated_functions is not None:
            causes.append(status.outdated_functions)
            remedies.append("run `stream-server install`")
        if status.losses:
            causes.append(f"{status.losses} changes since their installation were not recorded")
            remedies.append(
                "see PostgreSQL's log for the reason: search for `stream_server could not record a transition`"
            )
        if causes:
            return warning(f"{found}; {'; '.join(causes)}", "; ".join(remedies), **facts)
        return ok(f"{found}; no change was lost", **facts)

    async def check_lag(self) -> Finding:
        """Check that the journal has Airflow's newest change of a run."""
        schema = await self._find_airflow_schema()
        async with self._session.transaction() as connection:
            journal = await connection.fetchrow(self._queries["journal"])
            query = self._queries["newest_change"].replace("{airflow}", quote_identifier(schema))
            change_age = await connection.fetchval(query)
        assert journal is not None, "without a journal the query raises an error"
        return evaluate_lag(
            newest_age=journal["newest_age"],
            change_age=change_age,
            installed_age=journal["installed_age"],
            pruned=journal["pruned"],
            limits=self._limits,
        )

    async def check_size(self) -> Finding:
        """Check the size of the journal, and that pruning and vacuum keep up."""
        async with self._session.transaction() as connection:
            row = await connection.fetchrow(self._queries["journal"])
        assert row is not None, "without a journal the query raises an error"
        oldest, retention = row["oldest_age"], self._limits.retention
        age = "" if oldest is None else f", the oldest {oldest / 3600:.1f} h old"
        found = (
            f"about {row['live_rows']} live and {row['dead_rows']} dead rows{age};"
            f" table {_format_megabytes(row['table_bytes'])}, index {_format_megabytes(row['index_bytes'])}"
        )
        facts = {name: row[name] for name in ("live_rows", "dead_rows", "table_bytes", "index_bytes", "oldest_age")}
        if retention and oldest is not None and oldest > retention + PRUNE_DELAY_SECONDS:
            remedy = "check that a server runs, and its log for why it does not prune (EXECUTE on stream_server.prune)"
            return warning(f"{found}; the retention is {retention / 3600:g} h", remedy, **facts)
        if row["dead_rows"] > max(self._limits.max_dead_rows, row["live_rows"]):
            last_vacuum = "never" if row["last_vacuum"] is None else f"last at {row['last_vacuum']:%Y-%m-%d %H:%M}Z"
            remedy = "check that autovacuum is enabled, and that nothing holds it back (see the check `transactions`)"
            return warning(f"{found}; vacuumed {last_vacuum}", remedy, **facts)
        return ok(found, **facts)

    async def _find_airflow_schema(self) -> str:
        """Return the schema of Airflow's tables, `public` if there are none."""
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
    """Compare the age of the journal's newest row with that of Airflow's newest change of a run, in seconds.

    There is no problem if the journal is empty after pruning, or if the newest change is older than the journal.
    """
    facts = {"newest_age": newest_age, "airflow_age": change_age}
    newest = "the journal is empty" if newest_age is None else f"the newest row is {newest_age:.0f} s old"
    if change_age is None or change_age > installed_age:
        return ok(f"{newest}; Airflow has not changed a run since the installation", **facts)
    if newest_age is None and pruned:
        return ok("the journal is empty after pruning", **facts)
    behind = (installed_age if newest_age is None else newest_age) - change_age
    if behind > limits.max_lag:
        return problem(
            f"{newest}, but Airflow changed a run {change_age:.0f} s ago",
            "see the check `triggers`; if it is ok, a client writes to Airflow's tables with triggers disabled"
            " (session_replication_role, logical replication, a restore)",
            **facts,
        )
    return ok(f"{newest}; Airflow's newest change of a run is {change_age:.0f} s old", **facts)


def _format_megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"
