"""The published descriptions are correct, complete and valid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

from stream_server import errors
from stream_server.domain.prediction import UNSUCCESSFUL_STATES
from stream_server.http.docs import asyncapi, openapi, responses
from stream_server.http.docs import routes as describe
from stream_server.http.docs.parameters import QUERY_PARAMETERS
from stream_server.http.endpoints.multiplex_messages import ClientMessage
from stream_server.protocol import examples
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import FAILURE_REASONS
from stream_server.protocol.schema import (
    CURSOR_SCHEMA,
    FRAME_TYPES,
    build_frame_schemas,
    build_frames_document,
    build_schemas,
    tag_of,
)
from stream_server.protocol.wire import Wire, decode_frame
from stream_server.server.app import create_app
from stream_server.settings import Settings
from support.openapi_validation import make_validator, validation_errors

ROOT = Path(__file__).resolve().parents[3]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()

EXAMPLES = [(kind, example) for kind, shown in examples.frame_examples(examples.FRAMES).items() for example in shown]
DOCUMENTS = [build_frames_document, openapi.build_openapi, asyncapi.build_asyncapi]


@pytest.fixture(scope="module")
def app() -> Starlette:
    return create_app(Settings.load(database_url="postgresql://user@host/database"))


def example_of(kind: str) -> dict[str, Any]:
    return next(dict(example) for name, example in EXAMPLES if name == kind)


@pytest.mark.parametrize("example", [example for _, example in EXAMPLES], ids=[kind for kind, _ in EXAMPLES])
def test_every_example_of_a_frame_is_valid(example: dict[str, Any]) -> None:
    assert validation_errors("Frame", example) == []


def test_every_type_of_frame_has_an_example() -> None:
    assert {kind for kind, _ in EXAMPLES} == set(map(tag_of, FRAME_TYPES))


@pytest.mark.parametrize("answer", examples.BODIES, ids=lambda answer: type(answer).__name__)
def test_every_example_of_a_body_is_valid(answer: msgspec.Struct) -> None:
    assert validation_errors(type(answer).__name__, msgspec.json.decode(msgspec.json.encode(answer))) == []


def test_every_example_of_a_client_message_is_valid_and_decoded() -> None:
    decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
    found = build_schemas(asyncapi.CLIENT_MESSAGES, "#/$defs/{name}")
    for kind, example in asyncapi.CLIENT_MESSAGE_EXAMPLES.items():
        assert list(make_validator({**found[kind.__name__], "$defs": found}).iter_errors(example)) == []
        assert type(decoder.decode(json.dumps(example))) is kind


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("reset", {"reason": "whim"}),
        ("end", {"outcome": "perhaps"}),
        ("close", {"code": 4999}),
        ("failure", {"reason": "task_bored"}),
        ("task", {"seq": "41"}),
        ("task", {"at": "yesterday"}),
        ("task", {"state": 3}),
        ("snapshot", {"tasks": [{"task_id": "answer"}]}),
        ("task", {"type": "chore"}),
        ("end", {"type": "task"}),
    ],
)
def test_schema_refuses_wrong_values(kind: str, change: dict[str, Any]) -> None:
    assert validation_errors("Frame", {**example_of(kind), **change})


@pytest.mark.parametrize("kind", [tag_of(kind) for kind in FRAME_TYPES])
def test_schema_allows_further_members_and_requires_its_own(kind: str) -> None:
    example = example_of(kind)
    assert validation_errors("Frame", {**example, "new": 1}) == []
    assert validation_errors("Frame", {**example, "new": 1}, strictly=True)
    (name,) = (one.__name__ for one in FRAME_TYPES if tag_of(one) == kind)
    for member in build_frame_schemas("")[name]["required"]:
        assert validation_errors("Frame", {other: value for other, value in example.items() if other != member})


def test_failure_reasons_match_the_states() -> None:
    assert set(FAILURE_REASONS) == {*(f"task_{state}" for state in UNSUCCESSFUL_STATES), "run_failed", "run_deleted"}


@pytest.mark.parametrize("make", DOCUMENTS)
def test_every_member_is_described(make: Callable[[], dict[str, Any]]) -> None:
    document = make()
    components = document["$defs"] if "$defs" in document else document["components"]["schemas"]
    bare = [
        f"{name}.{member}"
        for name, schema in components.items()
        for member, shape in schema.get("properties", {}).items()
        if not shape.get("description") and member not in {"type", "op"}
    ]
    assert bare == []
    assert [name for name, schema in components.items() if not schema.get("description")] == []


def test_inherited_member_keeps_its_description() -> None:
    found = build_schemas(FRAME_TYPES, "#/{name}")
    inherited, own = (found[kind]["properties"]["seq"]["description"] for kind in ("TaskTransition", "Result"))
    assert "but for output of tasks" in inherited
    assert inherited != own


def test_given_description_applies_only_to_members_without_one() -> None:
    class Message(msgspec.Struct):
        described: Annotated[str, msgspec.Meta(description="Its own.")]
        bare: str

    found = build_schemas([Message], "#/{name}", {"described": "Another.", "bare": "Given."})
    described, bare = (found["Message"]["properties"][name]["description"] for name in ("described", "bare"))
    assert (described, bare) == ("Its own.", "Given.")


def test_examples_of_problems_have_the_type_of_the_error() -> None:
    for kind in (errors.Draining, errors.NoResult, errors.TooManyJoins):
        example = responses.problem_example(kind, 503)
        assert example["type"] == kind.problem_type()
        assert (example["title"], example["status"]) == (kind.title, 503)
        assert example["detail"].endswith(".")


def test_every_close_code_is_explained() -> None:
    text = build_frame_schemas("")["Close"]["properties"]["code"]["description"]
    for code in CloseCode:
        assert f"\n- `{int(code)}` {code.name}: " in text


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref" or (name == "mapping" and isinstance(inner, dict)):
                yield from [inner] if isinstance(inner, str) else inner.values()
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("make", DOCUMENTS)
def test_every_reference_leads_somewhere(make: Callable[[], dict[str, Any]]) -> None:
    document = make()
    found = set(references(document))
    assert found
    for reference in found:
        inner: Any = document
        for step in reference.removeprefix("#/").split("/"):
            inner = inner[step]


def test_schema_of_frames_is_valid() -> None:
    Draft202012Validator.check_schema(build_frames_document())


def test_openapi_is_valid() -> None:
    openapi_spec_validator.validate(openapi.build_openapi())


def test_asyncapi_has_the_shape_of_version_3() -> None:
    """No package has its JSON Schema; checked are the required members and the references of channels."""
    document = asyncapi.build_asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert document["info"].keys() >= {"title", "version"}
    for channel in document["channels"].values():
        assert channel["address"].startswith("/")
        assert channel["messages"]
    for operation in document["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        assert channel.removeprefix("#/channels/") in document["channels"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_every_route_is_described_and_nothing_else(app: Starlette) -> None:
    routed = {
        (route.path_format, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, item in openapi.build_openapi()["paths"].items() for method in item}
    assert described == routed


def test_every_websocket_is_described_and_nothing_else(app: Starlette) -> None:
    routed = {route.path for route in app.routes if isinstance(route, WebSocketRoute)}
    channels = asyncapi.build_asyncapi()["channels"].values()
    assert {channel["address"] for channel in channels if "ws" in channel.get("bindings", {})} == routed
    assert {channel["address"] for channel in channels} <= {
        route.path for route in app.routes if hasattr(route, "path")
    }


def test_every_parameter_belongs_to_an_operation() -> None:
    operations = [operation for item in openapi.build_openapi()["paths"].values() for operation in item.values()]
    used = {one["name"] for operation in operations for one in operation.get("parameters", []) if one["in"] == "query"}
    assert used == set(QUERY_PARAMETERS)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_examples_of_problems_equal_what_is_sent() -> None:
    unavailable = openapi.build_openapi()["paths"][f"{openapi.RUN_PATH}/stream"]["get"]["responses"]["503"]
    assert "Retry-After" in unavailable["headers"]
    shown = unavailable["content"]["application/problem+json"]["examples"]["Draining"]["value"]
    sent = errors.Draining().problem_body()
    assert {**shown, "detail": ""} == {**sent, "detail": ""}
    assert validation_errors("Problem", sent) == []


@pytest.mark.parametrize("text", re.findall(r"```json\n(\{\"type\".+?)\n```", PROTOCOL, re.DOTALL))
def test_examples_of_the_docs_are_examples_of_the_code(text: str) -> None:
    written = json.loads(text)
    assert validation_errors("Frame", written, strictly=True) == []
    same = [wire for wire in examples.FRAMES if wire.frame == decode_frame(text)]
    assert written.get("cursor") in {cursor_of(wire) for wire in same}, "it is another example"


def cursor_of(wire: Wire) -> str | None:
    return None if wire.token is None else str(wire.token)


def test_only_frames_of_streams_have_a_cursor() -> None:
    found = build_frame_schemas("")
    with_cursor = {name for name, schema in found.items() if CURSOR_SCHEMA in schema.get("properties", {}).values()}
    assert with_cursor == {kind.__name__ for kind in FRAME_TYPES} - {"Close", "AuthExpiring", "Ack", "Refusal"}


def test_description_is_built_once() -> None:
    one, other = (describe._render_document(openapi.build_openapi) for _ in range(2))
    assert one is other
    assert re.fullmatch('"[0-9a-f]{32}"', one.etag)
