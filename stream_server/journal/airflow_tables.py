"""Which tables and columns Airflow has in this database, and whether they are enough. Versions are not asked for."""

from __future__ import annotations

from dataclasses import dataclass

from stream_server.errors import JournalMissing
from stream_server.journal.connection import AnyConnection, map_postgres_errors
from stream_server.journal.queries import load_queries, quote_identifier

_COMMON_COLUMNS = {
    "dag_run": (
        *("id", "dag_id", "run_id", "state", "queued_at", "start_date", "end_date", "clear_number"),
        *("created_dag_version_id",),
    ),
    "serialized_dag": ("dag_version_id", "data", "data_compressed"),
}
_INSTANCE_COLUMNS = (
    *("id", "dag_id", "run_id", "task_id", "try_number", "state", "start_date", "end_date"),
    *("next_method", "trigger_timeout", "dag_version_id"),
)
_VALUE_COLUMNS = ("key", "value", "timestamp")

MAP_INDEX_COLUMNS = {
    **_COMMON_COLUMNS,
    "task_instance": (*_INSTANCE_COLUMNS, "map_index"),
    "task_instance_history": ("dag_id", "run_id", "task_id", "map_index", "try_number"),
    "xcom": ("dag_run_id", "dag_id", "run_id", "task_id", "map_index", *_VALUE_COLUMNS),
}
"""Columns by table in the queries and triggers for tables with `map_index`; Airflow 3.0 to 3.3 have them."""

TRY_COLUMNS = {
    **_COMMON_COLUMNS,
    "task_instance": (*_INSTANCE_COLUMNS, "region_id", "region_index", "working_set", "archived_reason"),
    "dynamic_region": ("id", "node_id", "parent_region_index"),
    "xcom_v2": ("task_instance_id", "dag_result", *_VALUE_COLUMNS),
    "xcom_v1": ("dag_id", "run_id", "task_id", "map_index", "dag_result", *_VALUE_COLUMNS),
    "legacy_task_data_owner": ("dag_id", "run_id", "task_id", "map_index", "task_instance_id"),
}
"""The same for tables in which each try of a task is a row; Airflow 3.4 has them."""

VERSION_TABLES = ("hitl_detail", "hitl_detail_history", "alembic_version")
"""Further tables that differ between versions."""

VERSION_COLUMNS = (
    ("task_instance", "region_index", "3.4"),
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
    "9cffe90fa0c0": "3.4.0b2",
}
"""`alembic_version` of each release that changed it (`airflow.utils.db._REVISION_HEADS_MAP`)."""

SUPPORTED_VERSIONS = "3.0 to 3.4"

TRY_MARKS = ("working_set", "region_index")
"""Columns of `task_instance`. Any of them shows that each try is a row; so it is in `stream_server.triggers()`."""

_QUERIES = "airflow_tables.sql"


class AirflowSchemaUnknown(JournalMissing):
    """Airflow's tables lack columns that the queries need."""

    title = "Airflow schema unknown"


@dataclass(frozen=True)
class AirflowTables:
    """The tables in one schema."""

    schema: str
    columns: frozenset[tuple[str, str]]
    """Table and name of each existing column, of the tables that stream_server knows."""

    revision: str | None
    """Value in `alembic_version`; `None` if there is none or the role may not read it."""

    @property
    def has_tries(self) -> bool:
        """Whether each try of a task is a row of its own, instead of one row for each task instance."""
        return any(("task_instance", name) in self.columns for name in TRY_MARKS)

    @property
    def required_columns(self) -> dict[str, tuple[str, ...]]:
        """Columns that the queries and triggers need, by table."""
        return TRY_COLUMNS if self.has_tries else MAP_INDEX_COLUMNS

    @property
    def missing_tables(self) -> list[str]:
        """Required tables that do not exist."""
        return sorted(self.required_columns.keys() - {table for table, _ in self.columns})

    @property
    def missing_columns(self) -> list[str]:
        """Required columns that do not exist, of tables that do, as `table.column`."""
        tables = {table for table, _ in self.columns}
        return [
            f"{table}.{name}"
            for table, names in self.required_columns.items()
            for name in names
            if table in tables and (table, name) not in self.columns
        ]

    @property
    def is_airflow(self) -> bool:
        """Whether any of the tables that all versions have exists."""
        return any((table, "dag_id") in self.columns for table in ("task_instance", "dag_run"))

    @property
    def is_release(self) -> bool:
        """Whether the revision is that of a release."""
        return self.revision in RELEASE_REVISIONS

    @property
    def version(self) -> str:
        """The version that the columns belong to, such as `3.3`."""
        return next((version for table, name, version in VERSION_COLUMNS if (table, name) in self.columns), "3.0")

    def describe_problem(self) -> str | None:
        """Return what is missing and what to do, as one sentence; `None` if nothing is missing."""
        missing = [*self.missing_tables, *self.missing_columns]
        if not missing:
            return None
        if not self.is_airflow:
            return (
                f"Schema {self.schema!r} of this database lacks Airflow's tables {', '.join(missing)};"
                " run `airflow db migrate` first, or give another schema with --airflow-schema"
            )
        found = "unknown" if self.revision is None else self.revision
        if self.revision in RELEASE_REVISIONS:
            advice = "finish `airflow db migrate`, then run `stream-server install`"
        else:
            advice = (
                "upgrade stream-server to a version that supports this Airflow, and run `stream-server install`;"
                " if `airflow db migrate` was interrupted, finish it first"
            )
        return (
            f"Airflow's tables in schema {self.schema!r} are those of no version from {SUPPORTED_VERSIONS}: they lack"
            f" {', '.join(missing)} (revision {found}); {advice}"
        )


async def read_airflow_tables(connection: AnyConnection, schema: str) -> AirflowTables:
    """Return the tables in a schema.

    Raises:
        JournalUnreachable: PostgreSQL does not answer.
    """
    queries = load_queries(_QUERIES, airflow=quote_identifier(schema))
    tables = [*MAP_INDEX_COLUMNS.keys() | TRY_COLUMNS.keys(), *VERSION_TABLES]
    with map_postgres_errors():
        rows = await connection.fetch(queries["columns"], schema, tables)
        revision = None
        if await connection.fetchval(queries["may_read_revision"], schema):
            revision = await connection.fetchval(queries["revision"])
    return AirflowTables(schema, frozenset((row["table_name"], row["column_name"]) for row in rows), revision)
