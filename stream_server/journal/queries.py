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

_IS_STATE_CHANGED = """(
            coalesce(n.state, '') OPERATOR(pg_catalog.<>) coalesce(o.state, '')
            OR coalesce(n.map_index, -2) OPERATOR(pg_catalog.<>) coalesce(o.map_index, -2)
        )"""
IS_TASK_CHANGED = f"({_IS_STATE_CHANGED} OR coalesce(n.try_number OPERATOR(pg_catalog.<>) o.try_number, false))"
"""Condition on the old (`o`) and the new row (`n`) of a task instance: whether the journal records the change."""

IS_ONLY_TRY_CHANGED = f"NOT {_IS_STATE_CHANGED}"
"""Whether a recorded change is one of the try number alone. Airflow makes none, except in migrations."""

IS_TRY_CHANGED = _IS_STATE_CHANGED.replace("map_index", "region_index")
"""The same for tables in which each try is a row (Airflow 3.4), but also true for rows that are not live."""

IS_TRY_RECORDED = f"""(
            (n.working_set IS TRUE OR n.dag_id IS NULL) AND {IS_TRY_CHANGED}
            AND coalesce(n.state, '') OPERATOR(pg_catalog.<>) 'up_for_retry'
        )"""
"""Whether the journal records the change; see `functions_tries.sql`. True for old rows that have no partner."""

HAS_LEFT = (
    "(o.working_set IS TRUE AND n.working_set IS NULL"
    " AND coalesce(n.archived_reason, '') OPERATOR(pg_catalog.=) 'superseded')"
)
"""Whether a task instance left its run without a successor."""

_SENTINEL_REGION = "'00000000-0000-0000-0000-000000000000'"
MAP_INDEX = (
    f"CASE WHEN n.region_id OPERATOR(pg_catalog.=) {_SENTINEL_REGION}"
    " OR g.node_id OPERATOR(pg_catalog.=) n.task_id THEN n.region_index ELSE -1 END"
)
"""The `map_index` of Airflow's API, of a try (`n`) with its region (`g`)
(`airflow.models.task_coordinates.public_map_index_expression`)."""

ITERATION = (
    f"CASE WHEN n.region_id OPERATOR(pg_catalog.=) {_SENTINEL_REGION} THEN NULL"
    " WHEN g.node_id OPERATOR(pg_catalog.=) n.task_id THEN g.parent_region_index ELSE n.region_index END"
)
"""The iteration of a task loop. A mapped task in a loop has a region of its own, below that of the loop."""

REGION_OF_TRY = f"""LATERAL (
            SELECT r.node_id, r.parent_region_index FROM {{airflow_tables}}.dynamic_region AS r
            WHERE r.id OPERATOR(pg_catalog.=) n.region_id AND n.region_id OPERATOR(pg_catalog.<>) {_SENTINEL_REGION}
            OFFSET 0
        ) AS g ON true"""  # noqa: S608 # constants
"""The right side of a join of tries (`n`) with their regions (`g`). OFFSET makes it an index scan for each try: a plain
join may be planned as a hash join, which reads the whole table, and the plan is kept."""

LAST_TRY = (
    "CASE WHEN n.try_number OPERATOR(pg_catalog.>) 0"
    " AND (n.state IS NULL OR n.state OPERATOR(pg_catalog.=) 'up_for_retry')"
    " THEN n.try_number OPERATOR(pg_catalog.-) 1 ELSE n.try_number END"
)
"""The number of the last try, also of a row that waits for its next one."""

RETURN_IF_SCHEMA_UNKNOWN = """
    IF pg_catalog.pg_sequence_last_value('stream_server.unknown_schema'::pg_catalog.regclass) IS NOT NULL THEN
        RETURN NULL;
    END IF;""".strip()

RETURN_IF_MIGRATING = """
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                   WHERE a.attrelid OPERATOR(pg_catalog.=) TG_RELID
                       AND a.xmin OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid)
        THEN
            PERFORM pg_catalog.set_config('stream_server.given_up', 'on', true);
            RETURN NULL;
        END IF;""".strip()
"""Ends a trigger function, and silences the others, in a transaction that has changed the columns of the table."""

RETURN_IF_CATALOG_CHANGED = RETURN_IF_MIGRATING.replace("pg_attribute", "pg_class").replace(
    "a.attrelid OPERATOR(pg_catalog.=) TG_RELID\n                       AND ", ""
)
"""The same for a change of any table. It reads all of pg_class, so it is for statements that Airflow never makes."""

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
    "is_only_try_changed": IS_ONLY_TRY_CHANGED,
    "is_try_changed": IS_TRY_CHANGED,
    "is_try_recorded": IS_TRY_RECORDED,
    "has_left": HAS_LEFT,
    "map_index": MAP_INDEX,
    "iteration": ITERATION,
    "region_of_try": REGION_OF_TRY,
    "last_try": LAST_TRY,
    "return_if_schema_unknown": RETURN_IF_SCHEMA_UNKNOWN,
    "return_if_migrating": RETURN_IF_MIGRATING,
    "return_if_catalog_changed": RETURN_IF_CATALOG_CHANGED,
}

_BLOCK_NAME = re.compile(r"^-- (\w+) --\n", re.MULTILINE)


def load_sql(name: str) -> str:
    """Return the text of a file in `sql/`."""
    return (files("stream_server.journal") / "sql" / name).read_text(encoding="utf-8")


def load_queries(file: str = "queries.sql", **placeholders: str) -> dict[str, str]:
    """Return the blocks of a file by their names, with the placeholders filled in."""
    _, *parts = _BLOCK_NAME.split(fill_placeholders(load_sql(file), **placeholders))
    return {name: block.strip() for name, block in zip(parts[::2], parts[1::2], strict=True)}


def load_server_queries(
    airflow_schema: str, *, has_tries: bool, with_requests: bool, with_pools: bool
) -> dict[str, str]:
    """Return the blocks of `queries.sql`, and the query `human_input` if requests for human input can be read.

    Args:
        airflow_schema: Schema of Airflow's tables.
        has_tries: Whether each try of a task is a row of its own.
        with_requests: Whether the table `hitl_detail` exists, and may be read.
        with_pools: Whether the table `slot_pool` may be read.
    """
    airflow = quote_identifier(airflow_schema)
    reads = load_queries("reads_tries.sql" if has_tries else "reads_instances.sql", airflow=airflow)
    blocks = load_queries("human_input.sql", airflow=airflow)
    parts = {**{name: blocks[name] for name in ("request_record", "current_requests")}, **reads}
    of_run = fill_placeholders(blocks["requests_of_run" if with_requests else "no_requests"], **parts)
    queries = load_queries(requests_of_run=of_run, **reads, airflow=airflow)
    queries |= load_queries("dag_lists.sql", airflow=airflow)
    waiting = load_queries("waiting.sql")
    queries["waiting_runs"] = fill_placeholders(
        waiting["waiting_runs"],
        pools=waiting["pools" if with_pools else "no_pools"],
        may_read_pools="true" if with_pools else "false",
    )
    if with_requests:
        queries["human_input"] = fill_placeholders(blocks["human_input"], **parts, airflow=airflow)
    return {name: fill_placeholders(text, airflow=airflow) for name, text in queries.items()}


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
