"""Reading of JSON value by value."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.json_reader import JsonReader

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
objects = st.dictionaries(st.text(max_size=5), st.lists(values, max_size=3), min_size=1, max_size=3)


def read_objects(reader: JsonReader) -> dict[str, list[Any]]:
    found = {key: [reader.read_value() for _ in reader.iter_items()] for key in reader.iter_keys()}
    reader.read_end()
    return found


@given(objects, st.sampled_from([None, 0, 1, "\t"]))
def test_values_are_those_of_the_text(value: dict[str, list[Any]], indent: int | str | None) -> None:
    assert read_objects(JsonReader(f" {json.dumps(value, indent=indent)}\r\n")) == value


@given(objects, st.data())
def test_a_text_that_is_cut_off_is_refused(value: dict[str, list[Any]], data: st.DataObject) -> None:
    text = json.dumps(value)
    with pytest.raises(msgspec.DecodeError):
        read_objects(JsonReader(text[: data.draw(st.integers(0, len(text) - 1))]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "`{` at character 0"),
        ('{"a": {}}', "`[` at character 6"),
        ('{"a": [] "b": []}', "`}` at character 9"),
        ("{1: []}", "a key at character 2"),
        ('{"a" []}', "`:` at character 5"),
        ('{"a": [1 2]}', "`]` at character 9"),
        ('{"a": [,]}', "a value at character 7"),
        ('{"a": []} x', "the end at character 10"),
    ],
)
def test_an_error_names_what_is_missing(text: str, expected: str) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        read_objects(JsonReader(text))
    assert str(caught.value) == f"The text must have {expected}"
