"""Airflow's version by its tables, and whether they have the columns that the server reads."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from stream_server.cli.doctor.report import Finding, ok, problem, warning

REQUIRED_COLUMNS = {
    "dag_run": (
        *("id", "dag_id", "run_id", "state", "queued_at", "start_date", "end_date", "clear_number"),
        *("created_dag_version_id",),
    ),
    "task_instance": (
        "dag_id",
        "run_id",
        "task_id",
        "map_index",
        "try_number",
        "state",
        "start_date",
        "end_date",
        "dag_version_id",
    ),
    "xcom": ("dag_run_id", "dag_id", "run_id", "task_id", "map_index", "key", "value", "timestamp"),
    "serialized_dag": ("dag_version_id", "data", "data_compressed"),
}
"""Columns in the queries and triggers of stream_server; all versions from 3.0 to 3.3 have them."""

VERSION_TABLES = ("hitl_detail", "hitl_detail_history", "alembic_version")
"""Further tables that differ between versions."""

VERSION_COLUMNS = (
    ("xcom", "dag_result", "3.3"),
    ("hitl_detail_history", "ti_history_id", "3.2"),
    ("hitl_detail", "ti_id", "3.1"),
)
"""Table, column and the version that introduced it, newest version first."""

RELEASE_REVISIONS = {
    "29ce7909c52b": "3.0.0",
    "fe199e1abd77": "3.0.3",
    "cc92b33c6709": "3.1.0",
    "509b94a1042d": "3.1.8",
    "1d6611b6ab7c": "3.2.0",
    "d2f4e1b3c5a7": "3.3.0",
}
"""`alembic_version` of each release that changed it (`airflow.utils.db._REVISION_HEADS_MAP`)."""


def evaluate_schema(schema: str, columns: AbstractSet[tuple[str, str]], revision: str | None) -> Finding:
    """Return the finding about Airflow's tables.

    Args:
        schema: Schema of the tables.
        columns: Table and name of each existing column.
        revision: Value in `alembic_version`; `None` if the role may not read it.
    """
    tables = {table for table, _ in columns}
    if missing := REQUIRED_COLUMNS.keys() - tables:
        return problem(
            f"this database lacks tables of Airflow ({', '.join(sorted(missing))})",
            "use the database of Airflow's [database] sql_alchemy_conn, or run `airflow db migrate` first",
            schema=schema,
        )
    absent = [
        f"{table}.{name}" for table, names in REQUIRED_COLUMNS.items() for name in names if (table, name) not in columns
    ]
    if absent:
        return problem(
            f"the tables in schema {schema} do not match Airflow 3.0 to 3.3; missing: {', '.join(absent)}",
            "upgrade Airflow to 3.0 or newer, or finish `airflow db migrate`",
            schema=schema,
        )
    seen = next((version for table, name, version in VERSION_COLUMNS if (table, name) in columns), "3.0")
    facts = {"schema": schema, "version": seen, "revision": revision}
    if revision is not None and revision not in RELEASE_REVISIONS:
        return warning(
            f"the tables in schema {schema} match Airflow {seen}, but revision {revision} is not that of a release",
            "finish `airflow db migrate`; for a newer Airflow, upgrade stream-server",
            **facts,
        )
    migrated_to = "" if revision is None else f" (migrated to {RELEASE_REVISIONS[revision]}, revision {revision})"
    return ok(f"tables of Airflow {seen}{migrated_to}, in schema {schema}", **facts)
