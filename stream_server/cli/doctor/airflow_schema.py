"""The finding about Airflow's tables."""

from __future__ import annotations

from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.journal.airflow_tables import RELEASE_REVISIONS, SUPPORTED_VERSIONS, AirflowTables


def evaluate_schema(tables: AirflowTables) -> Finding:
    """Return the finding about Airflow's tables."""
    if not tables.is_airflow:
        return problem(
            f"this database lacks tables of Airflow ({', '.join(tables.missing_tables)})",
            "use the database of Airflow's [database] sql_alchemy_conn, or run `airflow db migrate` first",
            schema=tables.schema,
        )
    if absent := [*tables.missing_tables, *tables.missing_columns]:
        return problem(
            f"the tables in schema {tables.schema} do not match Airflow {SUPPORTED_VERSIONS}; missing:"
            f" {', '.join(absent)} (revision {tables.revision or 'unknown'})",
            "upgrade Airflow to 3.0 or newer, or finish `airflow db migrate`"
            if tables.is_release
            else "upgrade stream-server to a version that supports this Airflow, or finish `airflow db migrate`",
            schema=tables.schema,
        )
    facts = {"schema": tables.schema, "version": tables.version, "revision": tables.revision}
    if tables.revision is not None and not tables.is_release:
        return warning(
            f"the tables in schema {tables.schema} match Airflow {tables.version}, but revision {tables.revision} is"
            " not that of a release",
            "finish `airflow db migrate`; for a newer Airflow, upgrade stream-server",
            **facts,
        )
    migrated_to = (
        ""
        if tables.revision is None
        else f" (migrated to {RELEASE_REVISIONS[tables.revision]}, revision {tables.revision})"
    )
    return ok(f"tables of Airflow {tables.version}{migrated_to}, in schema {tables.schema}", **facts)
