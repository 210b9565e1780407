from __future__ import annotations

import re
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.journal.queries import load_queries, load_server_queries, load_sql, quote_identifier, quote_literal

NAMES = {"journal_head", "rows_after", "run_snapshot", "serialized_dag", "return_values"}


def test_each_block_is_one_statement_under_its_name() -> None:
    queries = load_queries()
    assert queries.keys() >= NAMES
    for name, text in queries.items():
        assert re.search(r"^(SELECT|WITH)\b", text, re.MULTILINE), name
        assert "-- " + name not in text


@pytest.mark.parametrize("has_tries", [False, True])
@pytest.mark.parametrize("with_requests", [False, True])
def test_placeholders_are_filled_in(*, has_tries: bool, with_requests: bool) -> None:
    queries = load_server_queries(
        "my schema", has_tries=has_tries, with_requests=with_requests, with_pools=with_requests
    )
    assert ("human_input" in queries) == with_requests
    assert '"my schema".dag_run AS r' in queries["run_snapshot"]
    assert not [name for name, text in queries.items() if re.search(r"\{\w+\}", text)]


@pytest.mark.parametrize("name", ["begin", "functions", "queries", "notify", "uninstall", "enable"])
def test_every_file_is_shipped(name: str) -> None:
    assert load_sql(f"{name}.sql").startswith("-- ")


def unquoted(text: str, quote: str) -> str:
    assert text[0] == text[-1] == quote
    inner = text[1:-1]
    assert quote not in inner.replace(quote * 2, ""), "nothing ends the name early"
    return inner.replace(quote * 2, quote)


@given(st.text())
def test_a_quoted_name_is_the_name(name: str) -> None:
    assert unquoted(quote_identifier(name), '"') == name


@given(st.text(st.characters(exclude_characters="\\")))
def test_a_quoted_text_is_the_text(text: str) -> None:
    assert unquoted(quote_literal(text), "'") == text


def test_a_name_can_be_quoted_twice() -> None:
    twice = reduce(lambda text, _: quote_identifier(text), range(2), 'a"b')
    assert unquoted(unquoted(twice, '"'), '"') == 'a"b'
