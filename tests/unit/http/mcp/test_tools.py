"""DAGs as tools."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stream_server.domain.dag_description import DagDescription
from stream_server.http.mcp.tools import MAX_NAME_LENGTH, build_input_schema, build_tool, name_tool


def encode_param(default: Any, **schema: Any) -> dict[str, Any]:
    """Return a param as Airflow serialises it."""
    return {"default": default, "description": None, "schema": {"__type": "dict", "__var": schema}}


MISSING = {"__type": "arg_not_set", "__var": None}


@given(st.text(min_size=1))
def test_names_have_only_the_permitted_characters(dag_id: str) -> None:
    name = name_tool(dag_id)
    assert 0 < len(name) <= MAX_NAME_LENGTH
    assert all(character.isascii() and (character.isalnum() or character in "_.-") for character in name)


def test_a_name_that_is_permitted_stays_and_others_differ() -> None:
    assert name_tool("my.dag-1_x") == "my.dag-1_x"
    assert name_tool("wait_for_dag_run") != "wait_for_dag_run"
    assert len({name_tool(dag_id) for dag_id in ("größe", "gröẞe", "gr__e", "a" * 200, "a" * 201)}) == 5


@pytest.mark.parametrize(
    ("param", "expected", "is_required"),
    [
        (encode_param("Rome", type="string"), {"type": "string", "default": "Rome"}, False),
        (encode_param(MISSING, type="string"), {"type": "string"}, True),
        (encode_param(None, type="string"), {"type": "string"}, True),
        (encode_param(None, type=["null", "integer"]), {"type": ["null", "integer"], "default": None}, False),
        (encode_param(3), {"default": 3}, False),
        (encode_param("a", type="string", **{"x-mcp-header": "A"}), {"type": "string", "default": "a"}, False),
        (encode_param("a", enum=["a", "b"]), {"enum": ["a", "b"], "default": "a"}, False),
        (
            encode_param([1], type="array", items={"__type": "dict", "__var": {"type": "integer"}}),
            {"type": "array", "items": {"type": "integer"}, "default": [1]},
            False,
        ),
    ],
)
def test_params_become_a_schema(param: dict[str, Any], expected: dict[str, Any], is_required: bool) -> None:
    schema = build_input_schema([["x", param]])
    assert schema["properties"] == {"x": expected}
    assert schema.get("required", []) == (["x"] if is_required else [])


def test_a_dag_without_params_takes_no_arguments() -> None:
    cases: list[Any] = [None, [], {}, "nonsense", [["x"]], [[1, 2]], 5]
    for params in cases:
        assert build_input_schema(params) == {"type": "object", "additionalProperties": False}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__type", "__var", "default", "schema", "enum", "type"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_serialised_params_raise_an_error(params: object) -> None:
    assert msgspec.json.encode(build_input_schema(params))
    assert msgspec.json.encode(build_input_schema([["x", params], ["y", {"schema": params, "default": params}]]))


def test_the_documentation_has_the_schema_of_the_result() -> None:
    text = 'A.\n\n```json output-schema\n{"type": "object", "required": ["a"]}\n```\n\nB.'
    tool = build_tool(DagDescription("d", "Title", "Short.", text, ["tool", "tool:destructive"], None))
    assert tool["outputSchema"] == {"type": "object", "required": ["a"]}
    assert tool["description"] == "Short.\n\nA.\n\n\nB."
    assert (tool["title"], tool["annotations"]) == ("Title", {"destructiveHint": True})
    Draft202012Validator.check_schema(tool["inputSchema"])


@pytest.mark.parametrize("block", ["{", '{"type": "array"}', "[]"])
def test_a_schema_that_is_not_one_of_an_object_is_left_in_the_text(block: str) -> None:
    text = f"```json output-schema\n{block}\n```"
    tool = build_tool(DagDescription("d", None, None, text, [], None))
    assert "outputSchema" not in tool
    assert tool["description"] == text
