from __future__ import annotations

import re

from stream_server.journal.privileges import JOURNAL_SCHEMA, READER_PRIVILEGES, build_grants_sql
from stream_server.journal.queries import load_sql


def test_a_reader_has_the_privileges_of_all_queries() -> None:
    files = ("queries.sql", "reads_instances.sql", "reads_tries.sql", "human_input.sql", "waiting.sql")
    queries = re.sub(r"^--.*", "", "".join(map(load_sql, files)), flags=re.MULTILINE)
    journal_objects = {*re.findall(rf"{JOURNAL_SCHEMA}\.(\w+)", queries), "triggers", "unknown_schema"}
    airflow_tables = set(re.findall(r"\{airflow\}\.(\w+)", queries))
    assert {each.name for each in READER_PRIVILEGES if each.schema == JOURNAL_SCHEMA} == journal_objects | {""}
    assert {each.name for each in READER_PRIVILEGES if each.schema is None} == airflow_tables | {""}


def test_uninstall_revokes_the_privileges_on_all_tables() -> None:
    listed = re.search(r"relname IN \(([^)]*)\)", load_sql("uninstall.sql"))
    assert listed is not None
    granted = {each.name for each in READER_PRIVILEGES if each.kind == "table" and each.schema is None}
    assert set(re.findall(r"'(\w+)'", listed[1])) == granted


def test_names_are_quoted() -> None:
    script = build_grants_sql("o'brien", "it's")
    assert "rolname = 'o''brien'" in script
    assert "('table', 'it''s', 'xcom', 'SELECT')" in script
    assert "{" not in script
