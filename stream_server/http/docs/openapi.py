"""OpenAPI 3.1 document of the HTTP API. Pure."""

from __future__ import annotations

from functools import partial

import msgspec

import stream_server
from stream_server import errors
from stream_server.http.delivery import ndjson
from stream_server.http.docs.openapi_agui import build_ag_ui_paths
from stream_server.http.docs.openapi_ai_sdk import build_ai_sdk_paths
from stream_server.http.docs.openapi_input import build_answer_operation
from stream_server.http.docs.openapi_lists import LIST_BODIES, build_list_paths
from stream_server.http.docs.openapi_mcp import build_mcp_paths
from stream_server.http.docs.openapi_openai import build_openai_paths
from stream_server.http.docs.openapi_server import (
    document_operation,
    health_operation,
    metrics_operation,
    probe_operation,
    ready_operation,
)
from stream_server.http.docs.parameters import SECURITY_SCHEMES, build_parameters
from stream_server.http.docs.responses import (
    JSON_TYPE,
    SCHEMA_TYPE,
    add_detail_content,
    add_stream_content,
    body_content,
    build_headers,
    lines_content,
    outcome_response,
    problem_responses,
)
from stream_server.http.endpoints import tickets, trigger
from stream_server.http.endpoints.firehose import STREAM_PARAMETERS as FIREHOSE_QUERY
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.http.endpoints.result import RESPONSE_PARAMETERS
from stream_server.http.params import STREAM_PARAMETERS, WATCH_PARAMETERS
from stream_server.protocol import examples
from stream_server.protocol.bodies import (
    Cancelled,
    Detail,
    Health,
    InputAnswer,
    InputReceipt,
    Problem,
    Readiness,
    RunAnswer,
    Ticket,
    WaitLine,
)
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
ANSWER_PATH = f"{RUN_PATH}/taskInstances/{{task_id}}/input"
FIREHOSE_PATH = "/api/v2/stream"
DAG_FIREHOSE_PATH = "/api/v2/dags/{dag_id}/stream"

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
CALLER_ERRORS = (errors.TokenInUrl, errors.OriginNotAllowed, errors.HostNotAllowed)
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

ANSWERS = (RunAnswer, Cancelled, InputAnswer, InputReceipt, Ticket, WaitLine, Health, Readiness)

REFUSAL_STATUSES = (400, 401, 403, 404, 409, 422)
"""Statuses with which Airflow refuses requests; the client gets the same."""

READ_REFUSAL_STATUSES = (401, 403, 404)
"""Statuses with which Airflow refuses read requests."""

OPTIONAL_SECURITY: list[Json] = [{name: []} for name in SECURITY_SCHEMES] + [{}]
"""A credential is optional: with `--auth none` every caller may read everything."""


def build_openapi() -> Json:
    references = "#/components/schemas/{name}"
    answers = build_schemas(
        (*ANSWERS, tickets.Wanted, Problem, Detail, *LIST_BODIES),
        references,
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
            ANSWER_PATH: {
                "post": build_answer_operation(
                    ANSWER_PATH,
                    problem_responses(
                        errors.BadRequest,
                        errors.BadParameter,
                        errors.RequestTooLarge,
                        *AIRFLOW_ERRORS,
                        refused=REFUSAL_STATUSES,
                    ),
                )
            },
            FIREHOSE_PATH: {"get": _firehose_operation(FIREHOSE_PATH)},
            DAG_FIREHOSE_PATH: {"get": _firehose_operation(DAG_FIREHOSE_PATH)},
            tickets.TICKETS_PATH: {"post": _ticket_operation()},
            **build_list_paths(
                partial(problem_responses, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS),
                body_content,
                OPTIONAL_SECURITY,
            ),
            **build_openai_paths(OPTIONAL_SECURITY),
            **build_ai_sdk_paths(
                partial(problem_responses, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS, errors.ReadReplica),
                OPTIONAL_SECURITY,
                REFUSAL_STATUSES,
            ),
            **build_ag_ui_paths(
                partial(problem_responses, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS, errors.ReadReplica),
                OPTIONAL_SECURITY,
                REFUSAL_STATUSES,
            ),
            **build_mcp_paths(
                partial(
                    problem_responses, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS, refused=REFUSAL_STATUSES
                ),
                OPTIONAL_SECURITY,
            ),
            PROBE_PATH: {"get": probe_operation()},
            "/health": {"get": health_operation()},
            "/ready": {"get": ready_operation()},
            "/metrics": {"get": metrics_operation()},
            "/openapi.json": {"get": document_operation("openapi", "This document", JSON_TYPE)},
            "/asyncapi.json": {
                "get": document_operation("asyncapi", "AsyncAPI 3.0 document of all streams", JSON_TYPE)
            },
            "/schema/frames.json": {"get": document_operation("frames", "JSON Schema of all frames", SCHEMA_TYPE)},
        },
        "components": {"schemas": {**build_frame_schemas(references), **answers}, "securitySchemes": SECURITY_SCHEMES},
    }


def _trigger_operation() -> Json:
    # A new run has no cursor to resume from.
    names = trigger.TRIGGER_PARAMETERS - {"cursor"}
    pending = outcome_response(
        "The timeout has passed; the body has the current state of the run", "pending", **_RUN_HEADERS, **_RETRY_HEADERS
    )
    return {
        "operationId": "triggerRun",
        "summary": "Trigger a DAG and get its result in the same call",
        "description": (
            "The body is that of Airflow's endpoint, except that `logical_date` may be omitted. With"
            " `wait_for_completion=true`, the server triggers the run with the caller's rights, and then waits for the"
            " outcome or streams the run, depending on `Accept`. Otherwise it forwards the request to Airflow and"
            " Airflow's response to the client, both unchanged."
        ),
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(RUNS_PATH, names, ("Idempotency-Key", "Prefer")),
        "requestBody": {
            "content": {JSON_TYPE: {"schema": {"type": "object"}, "example": {"conf": {"question": "why"}}}}
        },
        "responses": {
            "200": add_stream_content(
                outcome_response("The outcome of the run", "result", "failure", "none", **_RUN_HEADERS)
            ),
            "202": pending,
            "204": {"description": NO_VALUE, "headers": build_headers(_RUN_HEADERS)},
            **problem_responses(
                errors.RunNotFound,
                errors.BadParameter,
                errors.UnknownTask,
                errors.IdempotencyKeyReused,
                errors.RequestTooLarge,
                errors.NoResult,
                *AIRFLOW_ERRORS,
                *UNAVAILABLE_ERRORS,
                refused=REFUSAL_STATUSES,
                is_forwarded=True,
            ),
        },
    }


def _run_stream_operation() -> Json:
    path = f"{RUN_PATH}/stream"
    return {
        "operationId": "streamRun",
        "summary": "Stream a run: its state, each transition as it commits, and its outcome",
        "description": (
            "Server-sent events or NDJSON, depending on `Accept`, or a WebSocket after an upgrade. `/asyncapi.json`"
            " describes the WebSocket and all frames."
        ),
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(path, STREAM_PARAMETERS | {"ticket"}, ("Last-Event-ID",)),
        "responses": {
            "200": add_stream_content({"description": "Frames, sent as they occur"}),
            "204": {"description": "The client has received the `end` frame of this stream and need not reconnect"},
            **problem_responses(*STREAM_ERRORS, refused=READ_REFUSAL_STATUSES),
        },
    }


def _firehose_operation(path: str) -> Json:
    return {
        "operationId": "streamAllRuns" if path == FIREHOSE_PATH else "streamRunsOfDag",
        "summary": "Stream many runs: all transitions that match the filter",
        "description": "Only transitions: no snapshots and no outcomes.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(path, (*FIREHOSE_QUERY, "ticket"), ("Last-Event-ID",)),
        "responses": {
            "200": add_stream_content({"description": "Frames, sent as they occur"}),
            **problem_responses(
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
        "description": "The status describes the request, the body the run: a failed run has status 200.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(f"{RUN_PATH}/result", WATCH_PARAMETERS | RESPONSE_PARAMETERS, ("Prefer",)),
        "responses": {
            "200": outcome_response(
                "The outcome of the run; with `unwrap`, the bare value", "result", "failure", "none"
            ),
            "202": outcome_response(
                "The timeout has passed; the body has the current state of the run",
                "pending",
                **_RETRY_HEADERS,
                Location="URL of the next request.",
            ),
            "204": {"description": NO_VALUE},
            **problem_responses(*STREAM_ERRORS, errors.NoResult, refused=READ_REFUSAL_STATUSES),
        },
    }


def _wait_operation() -> Json:
    line = examples.body_examples(WaitLine)[0]
    lines = f'{{"state": "running"}}\n{msgspec.json.encode(line).decode()}\n'
    responses = {
        "404": {"description": ""},
        "409": {"description": ""},
        # Before the endpoint is called, requests are refused as everywhere else.
        **problem_responses(
            errors.TicketRefused, errors.BadParameter, *CALLER_ERRORS, *THROTTLING_ERRORS, *UNAVAILABLE_ERRORS
        ),
    }
    for status, text in (
        ("401", "Airflow does not accept the credential"),
        ("403", "The caller may not read the run, or XComs"),
        ("404", "The run does not exist"),
        ("409", "A task of `result` is in a task loop (Airflow 3.4)"),
        ("422", "`interval` is missing or invalid"),
    ):
        add_detail_content(responses[status], text)
    return {
        "operationId": "waitRun",
        "summary": "Wait for the end of a run, compatible with Airflow's endpoint",
        "description": "Parameters, statuses and lines are those of Airflow 3.3. A change of the state sends a line.",
        "security": OPTIONAL_SECURITY,
        "parameters": build_parameters(f"{RUN_PATH}/wait", ("interval", "result"), required="interval"),
        "responses": {
            "200": {
                "description": "Lines without a media type; the last one has the final state and the return values",
                "content": {ndjson.MEDIA_TYPE: lines_content("WaitLine", lines)},
            },
            **responses,
        },
    }


def _cancel_operation() -> Json:
    return {
        "operationId": "cancelRun",
        "summary": "Cancel a run: set it to failed, with the caller's rights",
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(f"{RUN_PATH}/cancel"),
        "responses": {
            "200": {"description": description_of(Cancelled), "content": {JSON_TYPE: body_content(Cancelled)}},
            **problem_responses(*AIRFLOW_ERRORS, refused=REFUSAL_STATUSES),
        },
    }


def _ticket_operation() -> Json:
    path = f"/api/v2/dags/{examples.DAG_ID}/dagRuns/{examples.RUN_ID}/stream"
    return {
        "operationId": "getTicket",
        "summary": "Get a ticket for a stream, for clients that cannot send headers",
        "description": (
            "A ticket opens one of the requested streams, once, as `?ticket=`, with the rights of the caller that"
            " requested it. A used or expired ticket is refused with 401."
        ),
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(tickets.TICKETS_PATH),
        "requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": reference_to(tickets.Wanted), "example": {"paths": [path]}}},
        },
        "responses": {
            "201": {"description": description_of(Ticket), "content": {JSON_TYPE: body_content(Ticket)}},
            **problem_responses(
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


_RUN_HEADERS = {
    "Location": "URL of the run.",
    "Content-Location": "URL at which a broken call can be resumed.",
}
NO_VALUE = "Only with `unwrap`: the outcome is `none`, so there is no value"

_RETRY_HEADERS = {"Retry-After": "Seconds after which to send the next request, which waits again."}
