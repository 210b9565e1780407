"""The description of all that is answered over HTTP, as OpenAPI 3.1 has it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

import msgspec

import stream_server
from stream_server import errors
from stream_server.http.delivery import ndjson, sse
from stream_server.http.delivery.pump import PING
from stream_server.http.docs.openapi_lists import LIST_BODIES, build_list_paths
from stream_server.http.docs.parameters import SECURITY_SCHEMES, build_parameters
from stream_server.http.endpoints import tickets, trigger
from stream_server.http.endpoints.firehose import FILTER_PARAMETERS
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.http.endpoints.result import DEFAULT_FAIL_STATUS, RESPONSE_PARAMETERS
from stream_server.http.params import QUESTION, STREAM
from stream_server.protocol import examples
from stream_server.protocol.bodies import Cancelled, Detail, Health, Problem, Readiness, RunAnswer, Ticket, WaitLine
from stream_server.protocol.schema import (
    DIALECT,
    Json,
    build_frame_schemas,
    build_schemas,
    description_of,
    reference_to,
)

RUNS_PATH = "/api/v2/dags/{dag_id}/dagRuns"
RUN_PATH = f"{RUNS_PATH}/{{run_id}}"
FIREHOSE_PATH = "/api/v2/stream"
DAG_FIREHOSE_PATH = "/api/v2/dags/{dag_id}/stream"

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"
SCHEMA_TYPE = "application/schema+json"

TITLE = "stream_server"
INFO: Json = {
    "title": TITLE,
    "version": stream_server.__version__,
    "description": stream_server.__doc__,
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}

UNAVAILABLE_ERRORS = (
    errors.JournalMissing,
    errors.JournalForbidden,
    errors.JournalUnreachable,
    errors.ServerFull,
    errors.PermissionUnknown,
    errors.Draining,
    errors.Unavailable,
)
THROTTLING_ERRORS = (errors.TooManyJoins, errors.TooManyStreams)
CALLER_ERRORS = (errors.TokenInUrl, errors.OriginNotAllowed)
STREAM_ERRORS = (
    errors.TicketRefused,
    errors.RunNotFound,
    errors.BadParameter,
    errors.UnknownTask,
    *CALLER_ERRORS,
    *THROTTLING_ERRORS,
    *UNAVAILABLE_ERRORS,
)
AIRFLOW_ERRORS = (
    *CALLER_ERRORS,
    errors.AirflowUrlMissing,
    errors.AirflowNotResponding,
    errors.AirflowTimeout,
    *THROTTLING_ERRORS,
)

REFUSAL_STATUSES = (400, 401, 403, 404, 409, 422)
"""Statuses with which Airflow refuses; they go on to the client."""

READ_REFUSAL_STATUSES = (401, 403, 404)
"""Those with which it refuses to let something be read."""


OPTIONAL_SECURITY: list[Json] = [{name: []} for name in SECURITY_SCHEMES] + [{}]
"""How a reader says who he is; he need not where everybody may read everything."""


def build_openapi() -> Json:
    """Return the description."""
    places = "#/components/schemas/{name}"
    answers = build_schemas(
        (RunAnswer, Cancelled, Ticket, tickets.Wanted, WaitLine, Health, Readiness, Problem, Detail, *LIST_BODIES),
        places,
    )
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "jsonSchemaDialect": DIALECT,
        "servers": [{"url": "/"}],
        "paths": {
            RUNS_PATH: {"post": _trigger_operation()},
            f"{RUN_PATH}/stream": {"get": _run_stream_operation()},
            f"{RUN_PATH}/result": {"get": _result_operation()},
            f"{RUN_PATH}/wait": {"get": _wait_operation()},
            f"{RUN_PATH}/cancel": {"post": _cancel_operation()},
            FIREHOSE_PATH: {"get": _firehose_operation(FIREHOSE_PATH)},
            DAG_FIREHOSE_PATH: {"get": _firehose_operation(DAG_FIREHOSE_PATH)},
            tickets.TICKETS_PATH: {"post": _ticket_operation()},
            **build_list_paths(
                partial(_problem_responses, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS),
                _body_content,
                OPTIONAL_SECURITY,
            ),
            PROBE_PATH: {"get": _probe_operation()},
            "/health": {"get": _health_operation()},
            "/ready": {"get": _ready_operation()},
            "/metrics": {"get": _metrics_operation()},
            "/openapi.json": {"get": _document_operation("openapi", "This description", JSON_TYPE)},
            "/asyncapi.json": {
                "get": _document_operation("asyncapi", "All streams, as AsyncAPI 3.0 describes them", JSON_TYPE)
            },
            "/schema/frames.json": {"get": _document_operation("frames", "JSON Schema of all frames", SCHEMA_TYPE)},
        },
        "components": {"schemas": {**build_frame_schemas(places), **answers}, "securitySchemes": SECURITY_SCHEMES},
    }


def _trigger_operation() -> Json:
    # A run that is new has no cursor to come back with.
    names = trigger.TRIGGER_PARAMETERS - {"cursor"}
    pending = _outcome_response("The time is up, and how the run stands", "pending", **_RUN_HEADERS, **_RETRY_HEADERS)
    return {
        "operationId": "triggerRun",
        "summary": "Trigger a DAG, and hear its answer in the same call",
        "description": (
            "The body is that of Airflow's endpoint, but that `logical_date` may be left out. With"
            " `wait_for_completion=true` the run is triggered with the caller's own rights, and then the call waits for"
            " its answer, or streams, by `Accept`. Without it the request is passed on to Airflow as it is, and its"
            " answer comes back as it is."
        ),
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(RUNS_PATH, names, ("Idempotency-Key",)),
        "requestBody": {
            "content": {JSON_TYPE: {"schema": {"type": "object"}, "example": {"conf": {"question": "why"}}}}
        },
        "responses": {
            "200": _add_stream_content(
                _outcome_response("How the run ended for the caller", "result", "failure", **_RUN_HEADERS)
            ),
            "202": pending,
            **_problem_responses(
                errors.RunNotFound,
                errors.BadParameter,
                errors.UnknownTask,
                errors.IdempotencyKeyReused,
                errors.RequestTooLarge,
                errors.NoResult,
                *AIRFLOW_ERRORS,
                *UNAVAILABLE_ERRORS,
                refused=REFUSAL_STATUSES,
                passed_on=True,
            ),
        },
    }


def _run_stream_operation() -> Json:
    path = f"{RUN_PATH}/stream"
    return {
        "operationId": "streamRun",
        "summary": "Watch a run: its state, each transition as it commits, and its outcome",
        "description": (
            "As server-sent events, or as lines of JSON, by `Accept`; as WebSocket on upgrade, which `/asyncapi.json`"
            " describes together with the order of frames."
        ),
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(path, STREAM | {"ticket"}, ("Last-Event-ID",)),
        "responses": {
            "200": _add_stream_content({"description": "Frames, as they come"}),
            "204": {"description": "The client has seen the `end` of this stream; it has no reason to come back"},
            **_problem_responses(*STREAM_ERRORS, refused=READ_REFUSAL_STATUSES),
        },
    }


def _firehose_operation(path: str) -> Json:
    return {
        "operationId": "streamAllRuns" if path == FIREHOSE_PATH else "streamRunsOfDag",
        "summary": "Follow many runs: every transition that the filter lets through",
        "description": "What they tell is what the journal says: no snapshots, and no outcomes.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(path, (*FILTER_PARAMETERS, "cursor", "ticket"), ("Last-Event-ID",)),
        "responses": {
            "200": _add_stream_content({"description": "Frames, as they come"}),
            **_problem_responses(
                errors.TicketRefused,
                errors.BadParameter,
                *CALLER_ERRORS,
                *THROTTLING_ERRORS,
                *UNAVAILABLE_ERRORS,
                refused=READ_REFUSAL_STATUSES,
            ),
        },
    }


def _result_operation() -> Json:
    return {
        "operationId": "getResult",
        "summary": "Wait for the outcome of a run",
        "description": "A run that failed is no failed request: the status tells of the call, the body of the run.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(f"{RUN_PATH}/result", QUESTION | RESPONSE_PARAMETERS),
        "responses": {
            "200": _outcome_response(
                "How the run ended for the caller; with `unwrap`, the bare value", "result", "failure"
            ),
            "202": _outcome_response(
                "The time is up, and how the run stands", "pending", **_RETRY_HEADERS, Location="Where to ask again."
            ),
            **_problem_responses(*STREAM_ERRORS, errors.NoResult, refused=READ_REFUSAL_STATUSES),
        },
    }


def _wait_operation() -> Json:
    line = examples.body_examples(WaitLine)[0]
    lines = f'{{"state": "running"}}\n{msgspec.json.encode(line).decode()}\n'
    airflow = {
        status: {"description": text, "content": {JSON_TYPE: {"schema": reference_to("Detail")}}}
        for status, text in (
            ("401", "Airflow does not know the caller"),
            ("403", "The caller may not read the run, or XComs"),
            ("404", "There is no such run"),
            ("422", "`interval` is missing or wrong"),
        )
    }
    return {
        "operationId": "waitRun",
        "summary": "Wait for the end of a run, as Airflow's own endpoint has it",
        "description": "Parameters, statuses and lines are those of Airflow 3.3; they come when the state changes.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(f"{RUN_PATH}/wait", ("interval", "result"), required="interval"),
        "responses": {
            "200": {
                "description": "Lines, of which the last tells the end, and what was returned; without a media type",
                "content": {ndjson.MEDIA_TYPE: _lines_content("WaitLine", lines)},
            },
            **airflow,
            **_problem_responses(*THROTTLING_ERRORS, *UNAVAILABLE_ERRORS),
        },
    }


def _cancel_operation() -> Json:
    return {
        "operationId": "cancelRun",
        "summary": "Stop a run: set it to failed, with the caller's own rights",
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(f"{RUN_PATH}/cancel"),
        "responses": {
            "200": {"description": description_of(Cancelled), "content": {JSON_TYPE: _body_content(Cancelled)}},
            **_problem_responses(*AIRFLOW_ERRORS, refused=REFUSAL_STATUSES),
        },
    }


def _ticket_operation() -> Json:
    path = f"/api/v2/dags/{examples.DAG_ID}/dagRuns/{examples.RUN_ID}/stream"
    return {
        "operationId": "getTicket",
        "summary": "Get a ticket for streams, for clients that can send no header",
        "description": (
            "It opens one of the streams that it is asked for, once, as `?ticket=`, with the rights of who has asked."
            " Used or expired, it is refused with 401."
        ),
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(tickets.TICKETS_PATH),
        "requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": reference_to(tickets.Wanted), "example": {"paths": [path]}}},
        },
        "responses": {
            "201": {"description": description_of(Ticket), "content": {JSON_TYPE: _body_content(Ticket)}},
            **_problem_responses(
                errors.BadRequest,
                errors.BadParameter,
                errors.OriginNotAllowed,
                errors.RequestTooLarge,
                errors.TooManyTickets,
                *CALLER_ERRORS,
                *THROTTLING_ERRORS,
                *UNAVAILABLE_ERRORS,
                refused=READ_REFUSAL_STATUSES,
            ),
        },
    }


def _probe_operation() -> Json:
    return {
        "operationId": "probeStreams",
        "summary": "A second of pings, to see what a proxy in front does to streams",
        "responses": {
            "200": {
                "description": "`ping` frames",
                "content": {sse.MEDIA_TYPE: _lines_content("Frame", PING.framed(sse.frame).decode())},
            },
            **_problem_responses(*THROTTLING_ERRORS),
        },
    }


def _health_operation() -> Json:
    answer = {"description": description_of(Health), "content": {JSON_TYPE: _body_content(Health)}}
    return {
        "operationId": "getHealth",
        "summary": "Whether the process runs",
        "responses": {"200": answer, **_problem_responses()},
    }


def _ready_operation() -> Json:
    return {
        "operationId": "getReadiness",
        "summary": "Whether streams are whole and live",
        "responses": {
            "200": {"description": "They are", "content": {JSON_TYPE: _body_content(Readiness)}},
            "503": {"description": "They are not", "content": {JSON_TYPE: {"schema": reference_to(Readiness)}}},
            **_problem_responses(),
        },
    }


def _metrics_operation() -> Json:
    texts: Json = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
    return {
        "operationId": "getMetrics",
        "summary": "Metrics for Prometheus",
        "responses": {
            "200": {"description": "In the form that is asked for", "content": texts},
            **_problem_responses(),
        },
    }


def _document_operation(what: str, summary: str, media_type: str) -> Json:
    tag = {"ETag": {"schema": {"type": "string"}, "description": "Changes with the description."}}
    return {
        "operationId": f"describe{what.capitalize()}",
        "summary": summary,
        "parameters": build_parameters("", (), ("If-None-Match",)),
        "responses": {
            "200": {"description": summary, "headers": tag, "content": {media_type: {"schema": {"type": "object"}}}},
            "304": {"description": "The client has it", "headers": tag},
            **_problem_responses(),
        },
    }


_RUN_HEADERS = {
    "Location": "The run, from the first byte on.",
    "Content-Location": "Where a broken call can be taken up.",
}
_RETRY_HEADERS = {"Retry-After": "Seconds after which to ask again; asking waits."}


def _build_headers(texts: dict[str, str]) -> Json:
    return {name: {"schema": {"type": "string"}, "description": text} for name, text in texts.items()}


def _outcome_response(description: str, *outcomes: str, **headers: str) -> Json:
    shown = {one["outcome"]: {"value": one} for one in examples.body_examples(RunAnswer) if one["outcome"] in outcomes}
    content = {
        JSON_TYPE: {
            "schema": {"anyOf": [reference_to(RunAnswer), {"description": "The bare value."}]},
            "examples": shown,
        }
    }
    return {"description": description, "headers": _build_headers(headers), "content": content}


def _add_stream_content(answer: Json) -> Json:
    """Return an answer that may also be a stream of frames."""
    events = b"".join(wire.framed(sse.frame) for wire in examples.STREAM).decode()
    lines = b"".join(wire.framed(ndjson.frame) for wire in examples.STREAM).decode()
    streams = {sse.MEDIA_TYPE: _lines_content("Frame", events), ndjson.MEDIA_TYPE: _lines_content("Frame", lines)}
    return {**answer, "content": {**answer.get("content", {}), **streams}}


def _lines_content(kind: str, example: str) -> Json:
    """Return what a body of many values is; OpenAPI before 3.2 has no word for the schema of each."""
    return {"schema": {"type": "string", "x-itemSchema": reference_to(kind)}, "example": example}


def _body_content(kind: type[msgspec.Struct]) -> Json:
    return {"schema": reference_to(kind), "example": examples.body_examples(kind)[0]}


def _problem_responses(
    *kinds: type[errors.StreamServerError], refused: Collection[int] = (), passed_on: bool = False
) -> Json:
    """Return what is answered where something is wrong, by status.

    Args:
        kinds: What may be wrong.
        refused: With which statuses Airflow may refuse what is asked of it.
        passed_on: Whether its refusal may come back as it is.
    """
    by_status: dict[int, list[type[errors.StreamServerError]]] = {}
    for kind in kinds:
        by_status.setdefault(DEFAULT_FAIL_STATUS if kind is errors.NoResult else kind.status, []).append(kind)
    for status in refused:
        by_status.setdefault(status, []).append(errors.AirflowRefused)
    found = {str(status): _problem_response(status, of_status) for status, of_status in sorted(by_status.items())}
    for status in refused if passed_on else ():
        found[str(status)]["content"][JSON_TYPE] = {"schema": reference_to("Detail")}
    fault = {
        "description": "The server has a fault; its log says more",
        "content": {PROBLEM_TYPE: {"schema": reference_to("Problem")}},
    }
    return {**found, "default": fault}


def _problem_response(status: int, kinds: Iterable[type[errors.StreamServerError]]) -> Json:
    kinds = tuple(kinds)
    shown: Json = {}
    for kind in kinds:
        error = kind.__new__(kind, description_of(kind))
        error.status = status
        shown[kind.__name__] = {"summary": kind.title, "value": errors.StreamServerError.problem_body(error)}
    retried = {"Retry-After": "Seconds after which to try again."} if any(kind.retry_after for kind in kinds) else {}
    return {
        "description": "\n".join(f"- {kind.title}: {description_of(kind)}" for kind in kinds),
        "headers": _build_headers(retried),
        "content": {PROBLEM_TYPE: {"schema": reference_to("Problem"), "examples": shown}},
    }
