"""The description of all that is answered over HTTP, as OpenAPI 3.1 has it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

import msgspec

import stream_server
from stream_server import errors
from stream_server.http.delivery import ndjson, sse
from stream_server.http.delivery.pump import PING
from stream_server.http.docs.openapi_lists import LISTS, pages_paths
from stream_server.http.docs.parameters import SECURITY, parameters
from stream_server.http.endpoints import firehose as many_runs
from stream_server.http.endpoints import result as longpoll
from stream_server.http.endpoints import tickets, trigger
from stream_server.http.endpoints.probe import PROBE
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

RUNS = "/api/v2/dags/{dag_id}/dagRuns"
RUN = f"{RUNS}/{{run_id}}"
ALL = "/api/v2/stream"
OF_DAG = "/api/v2/dags/{dag_id}/stream"

JSON = "application/json"
PROBLEM = "application/problem+json"
SCHEMA = "application/schema+json"

TITLE = "stream_server"
INFO: Json = {
    "title": TITLE,
    "version": stream_server.__version__,
    "description": stream_server.__doc__,
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}

UNAVAILABLE = (
    errors.JournalMissing,
    errors.JournalForbidden,
    errors.JournalUnreachable,
    errors.ServerFull,
    errors.PermissionUnknown,
    errors.Draining,
    errors.Unavailable,
)
LIMITED = (errors.TooManyJoins, errors.TooManyStreams)
OF_CALLER = (errors.TokenInUrl, errors.OriginNotAllowed)
OF_STREAM = (
    errors.TicketRefused,
    errors.RunNotFound,
    errors.BadParameter,
    errors.UnknownTask,
    *OF_CALLER,
    *LIMITED,
    *UNAVAILABLE,
)
OF_AIRFLOW = (*OF_CALLER, errors.AirflowUrlMissing, errors.AirflowNotResponding, errors.AirflowTimeout, *LIMITED)

REFUSALS = (400, 401, 403, 404, 409, 422)
"""Statuses with which Airflow refuses; they go on to the client."""

READING = (401, 403, 404)
"""Those with which it refuses to let something be read."""


READERS: list[Json] = [{name: []} for name in SECURITY] + [{}]
"""How a reader says who he is; he need not where everybody may read everything."""


def document() -> Json:
    """Return the description."""
    places = "#/components/schemas/{name}"
    answers = build_schemas(
        (RunAnswer, Cancelled, Ticket, tickets.Wanted, WaitLine, Health, Readiness, Problem, Detail, *LISTS), places
    )
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "jsonSchemaDialect": DIALECT,
        "servers": [{"url": "/"}],
        "paths": {
            RUNS: {"post": _trigger()},
            f"{RUN}/stream": {"get": _run_stream()},
            f"{RUN}/result": {"get": _result()},
            f"{RUN}/wait": {"get": _wait()},
            f"{RUN}/cancel": {"post": _cancel()},
            ALL: {"get": _many_runs(ALL)},
            OF_DAG: {"get": _many_runs(OF_DAG)},
            tickets.PATH: {"post": _ticket()},
            **pages_paths(partial(_problems, *OF_CALLER, *LIMITED, *UNAVAILABLE), _shown, READERS),
            PROBE: {"get": _probe()},
            "/health": {"get": _health()},
            "/ready": {"get": _ready()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _description("openapi", "This description", JSON)},
            "/asyncapi.json": {"get": _description("asyncapi", "All streams, as AsyncAPI 3.0 describes them", JSON)},
            "/schema/frames.json": {"get": _description("frames", "JSON Schema of all frames", SCHEMA)},
        },
        "components": {"schemas": {**build_frame_schemas(places), **answers}, "securitySchemes": SECURITY},
    }


def _trigger() -> Json:
    # A run that is new has no cursor to come back with.
    names = trigger.PARAMETERS - {"cursor"}
    pending = _answers("The time is up, and how the run stands", "pending", **_NAMED, **_RETRY)
    return {
        "operationId": "triggerRun",
        "summary": "Trigger a DAG, and hear its answer in the same call",
        "description": (
            "The body is that of Airflow's endpoint, but that `logical_date` may be left out. With"
            " `wait_for_completion=true` the run is triggered with the caller's own rights, and then the call waits for"
            " its answer, or streams, by `Accept`. Without it the request is passed on to Airflow as it is, and its"
            " answer comes back as it is."
        ),
        "security": [{name: []} for name in SECURITY],
        "parameters": parameters(RUNS, names, ("Idempotency-Key",)),
        "requestBody": {"content": {JSON: {"schema": {"type": "object"}, "example": {"conf": {"question": "why"}}}}},
        "responses": {
            "200": _streamed(_answers("How the run ended for the caller", "result", "failure", **_NAMED)),
            "202": pending,
            **_problems(
                errors.RunNotFound,
                errors.BadParameter,
                errors.UnknownTask,
                errors.IdempotencyKeyReused,
                errors.RequestTooLarge,
                errors.NoResult,
                *OF_AIRFLOW,
                *UNAVAILABLE,
                refused=REFUSALS,
                passed_on=True,
            ),
        },
    }


def _run_stream() -> Json:
    path = f"{RUN}/stream"
    return {
        "operationId": "streamRun",
        "summary": "Watch a run: its state, each transition as it commits, and its outcome",
        "description": (
            "As server-sent events, or as lines of JSON, by `Accept`; as WebSocket on upgrade, which `/asyncapi.json`"
            " describes together with the order of frames."
        ),
        "security": READERS,
        "parameters": parameters(path, STREAM | {"ticket"}, ("Last-Event-ID",)),
        "responses": {
            "200": _streamed({"description": "Frames, as they come"}),
            "204": {"description": "The client has seen the `end` of this stream; it has no reason to come back"},
            **_problems(*OF_STREAM, refused=READING),
        },
    }


def _many_runs(path: str) -> Json:
    return {
        "operationId": "streamAllRuns" if path == ALL else "streamRunsOfDag",
        "summary": "Follow many runs: every transition that the filter lets through",
        "description": "What they tell is what the journal says: no snapshots, and no outcomes.",
        "security": READERS,
        "parameters": parameters(path, (*many_runs.PARAMETERS, "cursor", "ticket"), ("Last-Event-ID",)),
        "responses": {
            "200": _streamed({"description": "Frames, as they come"}),
            **_problems(errors.TicketRefused, errors.BadParameter, *OF_CALLER, *LIMITED, *UNAVAILABLE, refused=READING),
        },
    }


def _result() -> Json:
    return {
        "operationId": "getResult",
        "summary": "Wait for the outcome of a run",
        "description": "A run that failed is no failed request: the status tells of the call, the body of the run.",
        "security": READERS,
        "parameters": parameters(f"{RUN}/result", QUESTION | longpoll.FORM),
        "responses": {
            "200": _answers("How the run ended for the caller; with `unwrap`, the bare value", "result", "failure"),
            "202": _answers(
                "The time is up, and how the run stands", "pending", **_RETRY, Location="Where to ask again."
            ),
            **_problems(*OF_STREAM, errors.NoResult, refused=READING),
        },
    }


def _wait() -> Json:
    line = examples.body_examples(WaitLine)[0]
    lines = f'{{"state": "running"}}\n{msgspec.json.encode(line).decode()}\n'
    airflow = {
        status: {"description": text, "content": {JSON: {"schema": reference_to("Detail")}}}
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
        "security": READERS,
        "parameters": parameters(f"{RUN}/wait", ("interval", "result"), required="interval"),
        "responses": {
            "200": {
                "description": "Lines, of which the last tells the end, and what was returned; without a media type",
                "content": {ndjson.MEDIA_TYPE: _lines("WaitLine", lines)},
            },
            **airflow,
            **_problems(*LIMITED, *UNAVAILABLE),
        },
    }


def _cancel() -> Json:
    return {
        "operationId": "cancelRun",
        "summary": "Stop a run: set it to failed, with the caller's own rights",
        "security": [{name: []} for name in SECURITY],
        "parameters": parameters(f"{RUN}/cancel"),
        "responses": {
            "200": {"description": description_of(Cancelled), "content": {JSON: _shown(Cancelled)}},
            **_problems(*OF_AIRFLOW, refused=REFUSALS),
        },
    }


def _ticket() -> Json:
    path = f"/api/v2/dags/{examples.DAG_ID}/dagRuns/{examples.RUN_ID}/stream"
    return {
        "operationId": "getTicket",
        "summary": "Get a ticket for streams, for clients that can send no header",
        "description": (
            "It opens one of the streams that it is asked for, once, as `?ticket=`, with the rights of who has asked."
            " Used or expired, it is refused with 401."
        ),
        "security": [{name: []} for name in SECURITY],
        "parameters": parameters(tickets.PATH),
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": reference_to(tickets.Wanted), "example": {"paths": [path]}}},
        },
        "responses": {
            "201": {"description": description_of(Ticket), "content": {JSON: _shown(Ticket)}},
            **_problems(
                errors.BadRequest,
                errors.BadParameter,
                errors.OriginNotAllowed,
                errors.RequestTooLarge,
                errors.TooManyTickets,
                *OF_CALLER,
                *LIMITED,
                *UNAVAILABLE,
                refused=READING,
            ),
        },
    }


def _probe() -> Json:
    return {
        "operationId": "probeStreams",
        "summary": "A second of pings, to see what a proxy in front does to streams",
        "responses": {
            "200": {
                "description": "`ping` frames",
                "content": {sse.MEDIA_TYPE: _lines("Frame", PING.framed(sse.frame).decode())},
            },
            **_problems(*LIMITED),
        },
    }


def _health() -> Json:
    answer = {"description": description_of(Health), "content": {JSON: _shown(Health)}}
    return {
        "operationId": "getHealth",
        "summary": "Whether the process runs",
        "responses": {"200": answer, **_problems()},
    }


def _ready() -> Json:
    return {
        "operationId": "getReadiness",
        "summary": "Whether streams are whole and live",
        "responses": {
            "200": {"description": "They are", "content": {JSON: _shown(Readiness)}},
            "503": {"description": "They are not", "content": {JSON: {"schema": reference_to(Readiness)}}},
            **_problems(),
        },
    }


def _metrics() -> Json:
    texts: Json = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
    return {
        "operationId": "getMetrics",
        "summary": "Metrics for Prometheus",
        "responses": {"200": {"description": "In the form that is asked for", "content": texts}, **_problems()},
    }


def _description(what: str, summary: str, media_type: str) -> Json:
    tag = {"ETag": {"schema": {"type": "string"}, "description": "Changes with the description."}}
    return {
        "operationId": f"describe{what.capitalize()}",
        "summary": summary,
        "parameters": parameters("", (), ("If-None-Match",)),
        "responses": {
            "200": {"description": summary, "headers": tag, "content": {media_type: {"schema": {"type": "object"}}}},
            "304": {"description": "The client has it", "headers": tag},
            **_problems(),
        },
    }


_NAMED = {
    "Location": "The run, from the first byte on.",
    "Content-Location": "Where a broken call can be taken up.",
}
_RETRY = {"Retry-After": "Seconds after which to ask again; asking waits."}


def _headers(texts: dict[str, str]) -> Json:
    return {name: {"schema": {"type": "string"}, "description": text} for name, text in texts.items()}


def _answers(description: str, *outcomes: str, **headers: str) -> Json:
    shown = {one["outcome"]: {"value": one} for one in examples.body_examples(RunAnswer) if one["outcome"] in outcomes}
    content = {
        JSON: {"schema": {"anyOf": [reference_to(RunAnswer), {"description": "The bare value."}]}, "examples": shown}
    }
    return {"description": description, "headers": _headers(headers), "content": content}


def _streamed(answer: Json) -> Json:
    """Return an answer that may also be a stream of frames."""
    events = b"".join(wire.framed(sse.frame) for wire in examples.STREAM).decode()
    lines = b"".join(wire.framed(ndjson.frame) for wire in examples.STREAM).decode()
    streams = {sse.MEDIA_TYPE: _lines("Frame", events), ndjson.MEDIA_TYPE: _lines("Frame", lines)}
    return {**answer, "content": {**answer.get("content", {}), **streams}}


def _lines(kind: str, example: str) -> Json:
    """Return what a body of many values is; OpenAPI before 3.2 has no word for the schema of each."""
    return {"schema": {"type": "string", "x-itemSchema": reference_to(kind)}, "example": example}


def _shown(kind: type[msgspec.Struct]) -> Json:
    return {"schema": reference_to(kind), "example": examples.body_examples(kind)[0]}


def _problems(*kinds: type[errors.StreamServerError], refused: Collection[int] = (), passed_on: bool = False) -> Json:
    """Return what is answered where something is wrong, by status.

    Args:
        kinds: What may be wrong.
        refused: With which statuses Airflow may refuse what is asked of it.
        passed_on: Whether its refusal may come back as it is.
    """
    by_status: dict[int, list[type[errors.StreamServerError]]] = {}
    for kind in kinds:
        by_status.setdefault(longpoll.FAIL_STATUS if kind is errors.NoResult else kind.status, []).append(kind)
    for status in refused:
        by_status.setdefault(status, []).append(errors.AirflowRefused)
    found = {str(status): _problem(status, of_status) for status, of_status in sorted(by_status.items())}
    for status in refused if passed_on else ():
        found[str(status)]["content"][JSON] = {"schema": reference_to("Detail")}
    fault = {
        "description": "The server has a fault; its log says more",
        "content": {PROBLEM: {"schema": reference_to("Problem")}},
    }
    return {**found, "default": fault}


def _problem(status: int, kinds: Iterable[type[errors.StreamServerError]]) -> Json:
    kinds = tuple(kinds)
    shown: Json = {}
    for kind in kinds:
        error = kind.__new__(kind, description_of(kind))
        error.status = status
        shown[kind.__name__] = {"summary": kind.title, "value": errors.StreamServerError.problem_body(error)}
    retried = {"Retry-After": "Seconds after which to try again."} if any(kind.retry_after for kind in kinds) else {}
    return {
        "description": "\n".join(f"- {kind.title}: {description_of(kind)}" for kind in kinds),
        "headers": _headers(retried),
        "content": {PROBLEM: {"schema": reference_to("Problem"), "examples": shown}},
    }
