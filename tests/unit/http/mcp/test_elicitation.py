"""Requests for human input as elicitations."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from mcp_types import ElicitRequestFormParams

from stream_server.errors import BadRequest
from stream_server.http.chat.answer_form import OPTION_FIELD, build_elicitation, read_answer
from stream_server.protocol.input_frames import Input, InputParam

ASKED_AT = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)


def build_param(value: Any, **schema: Any) -> InputParam:
    return InputParam(
        value=msgspec.Raw(msgspec.json.encode(value)), description=None, schema=msgspec.Raw(msgspec.json.encode(schema))
    )


def build_request(**members: Any) -> Input:
    head: dict[str, Any] = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 1}
    head |= {"asked_at": ASKED_AT, "subject": "Go on?", "options": ["Approve", "Reject"]}
    return Input(**{**head, **members})


def test_options_are_a_choice() -> None:
    built = build_elicitation(build_request(defaults=["Reject"], body="Think."))
    assert built["message"] == "Go on?\n\nThink."
    field = built["requestedSchema"]["properties"][OPTION_FIELD]
    assert field == {"type": "string", "enum": ["Approve", "Reject"], "title": "Answer", "default": "Reject"}
    several = build_elicitation(build_request(multiple=True))["requestedSchema"]["properties"][OPTION_FIELD]
    assert (several["type"], several["items"]["enum"]) == ("array", ["Approve", "Reject"])
    only = build_elicitation(build_request(options=["OK"]))
    assert only["requestedSchema"]["properties"] == {}
    assert read_answer({}, build_request(options=["OK"])).chosen_options == ["OK"]


@pytest.mark.parametrize(
    ("param", "kind", "given", "value"),
    [
        (build_param("a", type="string"), "string", "b", "b"),
        (build_param(1, type="integer", minimum=0), "integer", 2, 2),
        (build_param(1.5), "number", 2.5, 2.5),
        (build_param(True), "boolean", False, False),
        (build_param(None, type=["null", "string"]), "string", "x", "x"),
        (build_param({"a": 1}), "string", '{"a":2}', {"a": 2}),
        (build_param([1], type="array"), "string", "[2]", [2]),
        (build_param([1], type="array"), "string", "no JSON", "no JSON"),
        (build_param(None, type=["string", "integer"]), "string", "5", 5),
    ],
)
def test_params_are_flat_fields(param: InputParam, kind: str, given: Any, value: Any) -> None:
    request = build_request(params={"p": param})
    built = build_elicitation(request)
    assert built["requestedSchema"]["properties"]["p"]["type"] == kind
    ElicitRequestFormParams.model_validate(built)
    assert read_answer({OPTION_FIELD: "Approve", "p": given}, request).params_input == {"p": value}


TITLED = [{"const": "a", "title": "First"}, {"const": "b", "title": "Second"}]


@pytest.mark.parametrize(
    ("param", "field"),
    [
        (build_param("a", type="string", oneOf=TITLED), {"type": "string", "oneOf": TITLED, "default": "a"}),
        (
            build_param("a", type="string", enum=["a"], enumNames=["First"]),
            {"type": "string", "enum": ["a"], "enumNames": ["First"], "default": "a"},
        ),
        (
            build_param("a", type="string", enum=["a"], enumNames=["First", "Second"]),
            {"type": "string", "enum": ["a"], "default": "a"},
        ),
        (
            build_param(["a"], type=["array", "null"], items={"enum": ["a", "b"]}, minItems=1),
            {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 1, "default": ["a"]},
        ),
        (
            build_param(None, type="array", items={"anyOf": TITLED}),
            {"type": "array", "items": {"anyOf": TITLED}},
        ),
    ],
)
def test_choices_are_fields(param: InputParam, field: dict[str, Any]) -> None:
    request = build_request(params={"p": param})
    built = build_elicitation(request)
    assert built["requestedSchema"]["properties"]["p"] == field
    ElicitRequestFormParams.model_validate(built)
    assert read_answer({OPTION_FIELD: "Approve", "p": ["b"]}, request).params_input == {"p": ["b"]}


def test_a_param_may_have_the_name_of_the_choice() -> None:
    request = build_request(params={OPTION_FIELD: build_param("x")})
    assert set(build_elicitation(request)["requestedSchema"]["properties"]) == {OPTION_FIELD, f"_{OPTION_FIELD}"}
    answer = read_answer({OPTION_FIELD: "Reject", f"_{OPTION_FIELD}": "y"}, request)
    assert (answer.chosen_options, answer.params_input) == (["Reject"], {OPTION_FIELD: "y"})
    assert answer.asked_at == ASKED_AT.isoformat()


@pytest.mark.parametrize("content", [None, [], "x", {}, {OPTION_FIELD: None}, {OPTION_FIELD: []}, {OPTION_FIELD: [{}]}])
def test_an_answer_without_an_option_does_not_choose_the_default(content: object) -> None:
    with pytest.raises(BadRequest, match="must have `chosen_options`, with one of 'Approve', 'Reject'"):
        read_answer(content, build_request(defaults=["Approve"]))


def test_a_number_is_an_answer_that_airflow_checks() -> None:
    assert read_answer({OPTION_FIELD: 5}, build_request()).chosen_options == ["5"]


def test_fields_that_a_form_leaves_out_keep_their_values() -> None:
    request = build_request(
        params={"a": build_param("x"), "b": build_param(True), "c": build_param(None, type=["null", "string"])}
    )
    assert build_elicitation(request)["requestedSchema"]["required"] == [OPTION_FIELD]
    assert read_answer({OPTION_FIELD: "Approve"}, request).params_input == {"a": "x", "b": True, "c": None}
