"""The privileges that the database role of `stream-server serve` needs, and the SQL that grants them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from stream_server.journal.queries import fill_placeholders, load_sql, quote_literal

JOURNAL_SCHEMA = "stream_server"


class Privilege(NamedTuple):
    """One privilege on one object."""

    kind: Literal["schema", "table", "sequence", "function"]
    schema: str | None
    """`None` for the schema of Airflow's tables."""

    name: str
    """Empty for the schema itself."""

    privilege: Literal["USAGE", "SELECT", "EXECUTE"]
    consequence: str | None = None
    """What is missing without the privilege, if all streams are complete nevertheless."""


_JOURNAL_TABLES = ("journal", "meta", "output")

_JOURNAL_FUNCTIONS = (
    "triggers",
    "put_back",
    "prune",
    "claim",
    "release",
    "wait",
    "wait_no_more",
    "keep_ticket",
    "redeem_ticket",
    "foreign_reason",
    "adopt",
)

_AIRFLOW_TABLES = (
    "dag",
    "dag_run",
    "dag_tag",
    "dynamic_region",
    "hitl_detail",
    "legacy_task_data_owner",
    "serialized_dag",
    "slot_pool",
    "task_instance",
    "task_instance_history",
    "xcom",
    "xcom_v1",
    "xcom_v2",
)

_CONSEQUENCES = {"slot_pool": "runs that wait for a pool are not explained"}

READER_PRIVILEGES = (
    Privilege("schema", JOURNAL_SCHEMA, "", "USAGE"),
    *(Privilege("table", JOURNAL_SCHEMA, name, "SELECT") for name in _JOURNAL_TABLES),
    Privilege("sequence", JOURNAL_SCHEMA, "losses", "SELECT"),
    Privilege(
        *("sequence", JOURNAL_SCHEMA, "unknown_schema", "SELECT"),
        consequence="it is not reported that the triggers have switched themselves off",
    ),
    *(Privilege("function", JOURNAL_SCHEMA, name, "EXECUTE") for name in _JOURNAL_FUNCTIONS),
    Privilege("schema", None, "", "USAGE"),
    *(Privilege("table", None, name, "SELECT", _CONSEQUENCES.get(name)) for name in _AIRFLOW_TABLES),
)
"""All objects that `queries.sql` and `status.read_status` read and call."""


def build_grants_sql(role: str, airflow_schema: str) -> str:
    """Return the statement that grants a role the privileges that it lacks."""
    return fill_placeholders(load_sql("reader.sql"), reader=quote_literal(role), wanted=_format_values(airflow_schema))


def _format_values(airflow_schema: str) -> str:
    """Return the privileges as rows of a VALUES list."""
    rows = [(each.kind, each.schema or airflow_schema, each.name, each.privilege) for each in READER_PRIVILEGES]
    return ",\n            ".join(f"({', '.join(map(quote_literal, row))})" for row in rows)
