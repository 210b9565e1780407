"""Loading of the SQL files in `sql/`, and quoting."""

from __future__ import annotations

import re
from importlib.resources import files

from stream_server.domain.transition import OUTPUT_KEY

NOTIFY_LOCKS = {"idle_consumers": "1937011301, 1", "unnotified_writers": "1937011301, 2"}
"""Keys of the advisory locks of the notify protocol; see `stream_server.ring()`. 1937011301 is "stre" in ASCII."""

MAX_STORED_OUTPUT_BYTES = 256 * 1024
"""Larger output of one push is not stored. Bytes of the JSON text as PostgreSQL writes it."""

IS_PYTHON_TIME = "BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'"
"""Condition on a time: whether Python's `datetime` can hold it. PostgreSQL's times reach from 4713 BC to 294276 AD, and
can be infinite."""

IS_TASK_CHANGED = """(
            coalesce(n.state, '') OPERATOR(pg_catalog.<>) coalesce(o.state, '')
            OR coalesce(n.try_number, -1) OPERATOR(pg_catalog.<>) coalesce(o.try_number, -1)
            OR coalesce(n.map_index, -2) OPERATOR(pg_catalog.<>) coalesce(o.map_index, -2)
        )"""
"""Condition on the old (`o`) and the new row (`n`) of a task instance: whether the journal records the change."""

_NO_VERSION = "'00000000-0000-0000-0000-000000000000'"
HAS_OTHER_VERSION = (
    f"coalesce(n.dag_version_id, {_NO_VERSION}) OPERATOR(pg_catalog.<>) coalesce(o.dag_version_id, {_NO_VERSION})"
)
"""The same for the DAG version. Both are true or false for rows that have no partner in a join."""

MAX_REQUEST_BYTES, MAX_ALL_REQUEST_BYTES = 256 * 1024, 4 * 1024 * 1024
"""Larger requests for human input are read without their content; so are the oldest of one read beyond the total."""

COMMON_PLACEHOLDERS = {
    **NOTIFY_LOCKS,
    "output_key": OUTPUT_KEY,
    "output_bytes": str(MAX_STORED_OUTPUT_BYTES),
    "request_bytes": str(MAX_REQUEST_BYTES),
    "all_request_bytes": str(MAX_ALL_REQUEST_BYTES),
    "is_python_time": IS_PYTHON_TIME,
    "is_task_changed": IS_TASK_CHANGED,
    "has_other_version": HAS_OTHER_VERSION,
}

_BLOCK_NAME = re.compile(r"^-- (\w+) --\n", re.MULTILINE)


def load_sql(name: str) -> str:
    """Return the text of a file in `sql/`."""
    return (files("stream_server.journal") / "sql" / name).read_text(encoding="utf-8")


def load_queries(file: str = "queries.sql", **placeholders: str) -> dict[str, str]:
    """Return the blocks of a file by their names, with the placeholders filled in."""
    _, *parts = _BLOCK_NAME.split(fill_placeholders(load_sql(file), **placeholders))
    return {name: block.strip() for name, block in zip(parts[::2], parts[1::2], strict=True)}


def load_server_queries(airflow: str, *, with_requests: bool) -> dict[str, str]:
    """Return the blocks of `queries.sql`, and the query `human_input` if requests for human input can be read.

    Args:
        airflow: Schema of Airflow's tables, quoted.
        with_requests: Whether the table `hitl_detail` exists, and may be read.
    """
    blocks = load_queries("human_input.sql", airflow=airflow)
    parts = {name: blocks[name] for name in ("request_record", "current_requests")}
    of_run = fill_placeholders(blocks["requests_of_run" if with_requests else "no_requests"], **parts)
    queries = load_queries(airflow=airflow, requests_of_run=of_run)
    if with_requests:
        queries["human_input"] = fill_placeholders(blocks["human_input"], **parts)
    return queries


def load_migrations() -> dict[int, str]:
    """Return the migrations by the schema version that each leads to, ascending."""
    folder = files("stream_server.journal") / "sql" / "migrations"
    files_by_version = {int(file.name[:4]): file for file in folder.iterdir()}
    assert len(files_by_version) == len(list(folder.iterdir())), "each version has one migration"
    return {version: file.read_text(encoding="utf-8") for version, file in sorted(files_by_version.items())}


def fill_placeholders(text: str, **placeholders: str) -> str:
    """Replace `{name}` by its value, for `COMMON_PLACEHOLDERS` and these."""
    for name, value in {**COMMON_PLACEHOLDERS, **placeholders}.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def quote_identifier(name: str) -> str:
    """Return an identifier in quotes, as `quote_ident` does, but always quoted."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return a string literal, as `quote_literal` does. The text must have no backslash."""
    return "'" + text.replace("'", "''") + "'"
