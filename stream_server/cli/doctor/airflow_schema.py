"""Telling Airflow's version by its tables, and whether they are those that we read."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from stream_server.cli.doctor.report import Finding, ok, problem, warning

REQUIRED_COLUMNS = {
    "dag_run": (
        *("id", "dag_id", "run_id", "state", "queued_at", "start_date", "end_date", "clear_number"),
        *("created_dag_version_id",),
    ),
    "task_instance": (
        *("dag_id", "run_id", "task_id", "map_index", "try_number", "state", "start_date", "end_date"),
        *("dag_version_id",),
    ),
    "xcom": ("dag_run_id", "dag_id", "run_id", "task_id", "map_index", "key", "value", "timestamp"),
    "serialized_dag": ("dag_version_id", "data", "data_compressed"),
}
"""What our queries and triggers name; all versions from 3.0 to 3.3 have it."""

VERSION_TABLES = ("hitl_detail", "hitl_detail_history", "alembic_version")
"""Further tables by which versions differ."""

VERSION_COLUMNS = (
    ("xcom", "dag_result", "3.3"),
    ("hitl_detail_history", "ti_history_id", "3.2"),
    ("hitl_detail", "ti_id", "3.1"),
)
"""A column that a version was the first to have, the newest version first."""

RELEASE_REVISIONS = {
    "29ce7909c52b": "3.0.0",
    "fe199e1abd77": "3.0.3",
    "cc92b33c6709": "3.1.0",
    "509b94a1042d": "3.1.8",
    "1d6611b6ab7c": "3.2.0",
    "d2f4e1b3c5a7": "3.3.0",
}
"""Where each release leaves `alembic_version` (`airflow.utils.db._REVISION_HEADS_MAP`); later ones leave it there."""


def evaluate_schema(schema: str, columns: AbstractSet[tuple[str, str]], revision: str | None) -> Finding:
    """Judge Airflow's tables.

    Args:
        schema: Where they are.
        columns: Table and name of each column that there is.
        revision: What `alembic_version` says; `None` where it may not be read.
    """
    tables = {table for table, _ in columns}
    if missing := REQUIRED_COLUMNS.keys() - tables:
        return problem(
            f"Airflow's tables are not in this database ({', '.join(sorted(missing))} missing)",
            "name Airflow's database, the one of its [database] sql_alchemy_conn; or run `airflow db migrate` first",
            schema=schema,
        )
    absent = [
        f"{table}.{name}" for table, names in REQUIRED_COLUMNS.items() for name in names if (table, name) not in columns
    ]
    if absent:
        return problem(
            f"the tables in schema {schema} are not those of Airflow 3.0 to 3.3: {', '.join(absent)} missing",
            "upgrade Airflow to 3.0 or newer, or finish `airflow db migrate`",
            schema=schema,
        )
    seen = next((version for table, name, version in VERSION_COLUMNS if (table, name) in columns), "3.0")
    facts = {"schema": schema, "version": seen, "revision": revision}
    if revision is not None and revision not in RELEASE_REVISIONS:
        return warning(
            f"the tables in schema {schema} look like Airflow {seen}, but no release from 3.0 to 3.3 has revision"
            f" {revision}",
            "finish `airflow db migrate`; with a newer Airflow, look for a newer stream-server",
            **facts,
        )
    told = "" if revision is None else f" (migrated to {RELEASE_REVISIONS[revision]}, revision {revision})"
    return ok(f"tables of Airflow {seen}{told}, in schema {schema}", **facts)
