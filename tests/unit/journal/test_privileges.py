from __future__ import annotations

import re

from stream_server.journal.privileges import JOURNAL_SCHEMA, READER_PRIVILEGES, build_grants_sql
from stream_server.journal.queries import load_sql


def test_a_reader_may_do_all_that_the_queries_do() -> None:
    queries = re.sub(r"^--.*", "", load_sql("queries.sql"), flags=re.MULTILINE)
    ours = {*re.findall(rf"{JOURNAL_SCHEMA}\.(\w+)", queries), "triggers"}
    theirs = set(re.findall(r"\{airflow\}\.(\w+)", queries))
    assert {one.name for one in READER_PRIVILEGES if one.schema == JOURNAL_SCHEMA} == ours | {""}
    assert {one.name for one in READER_PRIVILEGES if one.schema is None} == theirs | {""}


def test_names_are_quoted() -> None:
    script = build_grants_sql("o'brien", "it's")
    assert "rolname = 'o''brien'" in script
    assert "('table', 'it''s', 'xcom', 'SELECT')" in script
    assert "{" not in script
