from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.cli.follow import encode_result_value, parse_conf
from stream_server.protocol.frames import Reference, Result
from support.builders import KEY


def result(*, references: dict[str, Reference] | None = None, **values: str) -> Result:
    raws = {task_id: msgspec.Raw(value.encode()) for task_id, value in values.items()}
    return Result(**KEY._asdict(), results=raws, references=references or {})


def test_the_value_of_the_only_task_is_printed_as_the_database_holds_it() -> None:
    assert encode_result_value(result(answer='{"a": 1.10}')) == b'{"a": 1.10}'


def test_the_values_of_several_tasks_are_an_object() -> None:
    assert json.loads(encode_result_value(result(left="1", right="[2]"))) == {"left": 1, "right": [2]}


def test_a_reference_is_printed_where_the_value_is_too_large() -> None:
    references = {"answer": Reference(href="/api/v2/x", bytes=9)}
    assert json.loads(encode_result_value(result(references=references))) == {"href": "/api/v2/x", "bytes": 9}


@given(st.dictionaries(st.text(), st.integers()))
def test_a_configuration_is_a_json_object(conf: dict[str, int]) -> None:
    assert parse_conf(json.dumps(conf)) == conf


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"text"'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON object|Expecting"):
        parse_conf(text)
