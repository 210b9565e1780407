"""What the database role of `stream-server serve` may do, and nothing else."""

from __future__ import annotations

from typing import Literal, NamedTuple

from stream_server.journal.queries import fill_placeholders, load_sql, quote_literal

JOURNAL_SCHEMA = "stream_server"


class Privilege(NamedTuple):
    """One privilege on one object."""

    kind: Literal["schema", "table", "sequence", "function"]
    schema: str | None
    """`None` for that of Airflow's tables."""

    name: str
    """Empty for the schema itself."""

    privilege: Literal["USAGE", "SELECT", "EXECUTE"]


READER_PRIVILEGES = (
    Privilege("schema", JOURNAL_SCHEMA, "", "USAGE"),
    *(Privilege("table", JOURNAL_SCHEMA, name, "SELECT") for name in ("journal", "meta", "output")),
    Privilege("sequence", JOURNAL_SCHEMA, "losses", "SELECT"),
    *(
        Privilege("function", JOURNAL_SCHEMA, name, "EXECUTE")
        for name in (
            *("triggers", "put_back", "prune", "claim", "release", "wait", "wait_no_more"),
            *("keep_ticket", "redeem_ticket"),
        )
    ),
    Privilege("schema", None, "", "USAGE"),
    *(
        Privilege("table", None, name, "SELECT")
        for name in (
            *("dag", "dag_run", "dag_tag", "serialized_dag"),
            *("task_instance", "task_instance_history", "xcom"),
        )
    ),
)
"""All that a server reads and calls (`queries.sql`, `install.read_status`)."""


def build_grants_sql(role: str, airflow_schema: str) -> str:
    """Return the statement that gives a role what a server needs. What it has already is left as it is."""
    return fill_placeholders(load_sql("reader.sql"), reader=quote_literal(role), wanted=_format_values(airflow_schema))


def _format_values(airflow_schema: str) -> str:
    """Return the privileges as rows of SQL."""
    rows = [(one.kind, one.schema or airflow_schema, one.name, one.privilege) for one in READER_PRIVILEGES]
    return ",\n            ".join(f"({', '.join(map(quote_literal, row))})" for row in rows)
