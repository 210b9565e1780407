"""Operations about the server itself, in the OpenAPI document. Pure."""

from __future__ import annotations

from stream_server import errors
from stream_server.http.delivery import sse
from stream_server.http.docs.parameters import build_parameters
from stream_server.http.docs.responses import JSON_TYPE, body_content, lines_content, problem_responses
from stream_server.protocol.bodies import Health, Readiness
from stream_server.protocol.schema import Json, description_of, reference_to
from stream_server.protocol.wire import PING


def probe_operation() -> Json:
    return {
        "operationId": "probeStreams",
        "summary": "Stream pings for one second, to test how a proxy in front of the server treats streams",
        "responses": {
            "200": {
                "description": "`ping` frames",
                "content": {sse.MEDIA_TYPE: lines_content("Frame", PING.framed(sse.encode_event).decode())},
            },
            **problem_responses(errors.TooManyJoins, errors.TooManyStreams),
        },
    }


def health_operation() -> Json:
    answer = {"description": description_of(Health), "content": {JSON_TYPE: body_content(Health)}}
    return {
        "operationId": "getHealth",
        "summary": "Check that the process runs",
        "responses": {"200": answer, **problem_responses()},
    }


def ready_operation() -> Json:
    return {
        "operationId": "getReadiness",
        "summary": "Check that streams are complete and up to date",
        "responses": {
            "200": {"description": "Ready", "content": {JSON_TYPE: body_content(Readiness)}},
            "503": {"description": "Not ready", "content": {JSON_TYPE: {"schema": reference_to(Readiness)}}},
            **problem_responses(),
        },
    }


def metrics_operation() -> Json:
    texts: Json = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
    return {
        "operationId": "getMetrics",
        "summary": "Get metrics for Prometheus",
        "responses": {
            "200": {"description": "In the format that `Accept` requests", "content": texts},
            **problem_responses(),
        },
    }


def document_operation(what: str, summary: str, media_type: str) -> Json:
    tag = {"ETag": {"schema": {"type": "string"}, "description": "Changes with the document."}}
    return {
        "operationId": f"describe{what.capitalize()}",
        "summary": summary,
        "parameters": build_parameters("", (), ("If-None-Match",)),
        "responses": {
            "200": {"description": summary, "headers": tag, "content": {media_type: {"schema": {"type": "object"}}}},
            "304": {"description": "The client's copy is up to date", "headers": tag},
            **problem_responses(),
        },
    }
