"""The responses of operations in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from stream_server import errors
from stream_server.http.delivery import ndjson, sse
from stream_server.http.endpoints.result import DEFAULT_FAIL_STATUS
from stream_server.protocol import examples
from stream_server.protocol.bodies import RunAnswer
from stream_server.protocol.schema import Json, description_of, reference_to

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"
SCHEMA_TYPE = "application/schema+json"


def build_headers(texts: dict[str, str]) -> Json:
    return {name: {"schema": {"type": "string"}, "description": text} for name, text in texts.items()}


def outcome_response(description: str, *outcomes: str, **headers: str) -> Json:
    shown = {one["outcome"]: {"value": one} for one in examples.body_examples(RunAnswer) if one["outcome"] in outcomes}
    content = {
        JSON_TYPE: {
            "schema": {"anyOf": [reference_to(RunAnswer), {"description": "The bare value."}]},
            "examples": shown,
        }
    }
    return {"description": description, "headers": build_headers(headers), "content": content}


def add_stream_content(response: Json) -> Json:
    """Return a response that may also be a stream of frames."""
    events = b"".join(wire.framed(sse.encode_event) for wire in examples.STREAM).decode()
    lines = b"".join(wire.framed(ndjson.encode_line) for wire in examples.STREAM).decode()
    streams = {sse.MEDIA_TYPE: lines_content("Frame", events), ndjson.MEDIA_TYPE: lines_content("Frame", lines)}
    return {**response, "content": {**response.get("content", {}), **streams}}


def lines_content(kind: str, example: str) -> Json:
    """Return the content of a body with many values.

    OpenAPI has `itemSchema` for the schema of each value only from 3.2 on.
    """
    return {"schema": {"type": "string", "x-itemSchema": reference_to(kind)}, "example": example}


def body_content(kind: type[msgspec.Struct]) -> Json:
    return {"schema": reference_to(kind), "example": examples.body_examples(kind)[0]}


def problem_responses(
    *kinds: type[errors.StreamServerError], refused: Collection[int] = (), is_forwarded: bool = False
) -> Json:
    """Return the error responses of an operation, by status.

    Args:
        kinds: Errors that the operation may raise.
        refused: Statuses with which Airflow may refuse the request.
        is_forwarded: Whether Airflow's own response may be forwarded unchanged.
    """
    by_status: dict[int, list[type[errors.StreamServerError]]] = {}
    for kind in kinds:
        by_status.setdefault(DEFAULT_FAIL_STATUS if kind is errors.NoResult else kind.status, []).append(kind)
    for status in refused:
        by_status.setdefault(status, []).append(errors.AirflowRefused)
    found = {str(status): _problem_response(status, of_status) for status, of_status in sorted(by_status.items())}
    for status in refused if is_forwarded else ():
        found[str(status)]["content"][JSON_TYPE] = {"schema": reference_to("Detail")}
    fault = {
        "description": "Internal error; the server's log has details",
        "content": {PROBLEM_TYPE: {"schema": reference_to("Problem")}},
    }
    return {**found, "default": fault}


def add_detail_content(response: Json, description: str) -> None:
    """Add to an error response that it may be in Airflow's form, not a problem."""
    response.setdefault("content", {})[JSON_TYPE] = {"schema": reference_to("Detail")}
    response["description"] = "\n".join(filter(None, (response["description"], f"- As by Airflow: {description}")))


def problem_example(kind: type[errors.StreamServerError], status: int) -> Json:
    """Return a problem of a class of errors. Its detail is the description of the class."""
    return {"type": kind.problem_type(), "title": kind.title, "status": status, "detail": description_of(kind)}


def _problem_response(status: int, kinds: Iterable[type[errors.StreamServerError]]) -> Json:
    kinds = tuple(kinds)
    shown: Json = {}
    for kind in kinds:
        shown[kind.__name__] = {"summary": kind.title, "value": problem_example(kind, status)}
    retried = {"Retry-After": "Seconds after which to retry."} if any(kind.retry_after for kind in kinds) else {}
    return {
        "description": "\n".join(f"- {kind.title}: {description_of(kind)}" for kind in kinds),
        "headers": build_headers(retried),
        "content": {PROBLEM_TYPE: {"schema": reference_to("Problem"), "examples": shown}},
    }
