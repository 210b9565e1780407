"""Path, query and header parameters, with bounds and defaults, for OpenAPI and AsyncAPI. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from stream_server.http.ai_sdk.endpoints import RESET_VALUES
from stream_server.http.endpoints.firehose import KNOWN_STATES, MAX_FILTER_VALUES
from stream_server.http.endpoints.lists import DEFAULT_RUN_LIMIT, RUN_LIMIT_BOUNDS
from stream_server.http.endpoints.result import DEFAULT_FAIL_STATUS, DEFAULT_TIMEOUT, FAIL_STATUS_BOUNDS
from stream_server.http.endpoints.trigger import DEFAULT_GRACE, IF_EXISTS, ON_DISCONNECT
from stream_server.http.openai.responses import MAX_SEQUENCE_NUMBER
from stream_server.http.params import CONFIRM_VALUES, POLYFILL_CURSOR, UNTIL_VALUES
from stream_server.http.triggering import MAX_KEY_LENGTH
from stream_server.hub.filters import FRAME_TYPES
from stream_server.protocol.schema import Json

DURATION_EXAMPLES = ["500ms", "5s", "2m", "1h", "2.5"]
"""Examples of durations; a plain number means seconds."""


def _duration_schema(seconds: float) -> Json:
    return {"type": "string", "default": f"{seconds:g}s", "examples": DURATION_EXAMPLES}


def _choice_schema(values: tuple[str, ...]) -> Json:
    return {"type": "string", "enum": list(values), "default": values[0]}


def _names_schema(**keywords: Any) -> Json:  # noqa: ANN401
    return {
        "type": "array",
        "items": {"type": "string", **(keywords or {"minLength": 1})},
        "maxItems": MAX_FILTER_VALUES,
    }


SECURITY_SCHEMES: Json = {
    "airflowToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of Airflow's API. The server acts with the caller's rights.",
    },
    "airflowCookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "_token",
        "description": "The same token in the cookie that Airflow's UI sets. All cookies are forwarded to Airflow.",
    },
}
"""How callers authenticate."""

FLAG_SCHEMA: Json = {"type": "boolean", "default": False}

NAMES_SCHEMA: Json = {"type": "array", "items": {"type": "string", "minLength": 1}}

PATH_VARIABLES: dict[str, str] = {
    "chat_id": "ID of the chat, as the client has chosen it.",
    "thread_id": "ID of the thread, as the client has chosen it.",
    "response_id": "ID of the response.",
    "model": "ID of a DAG with the tag `chat`.",
    "dag_id": "The DAG ID.",
    "run_id": "The run ID, percent-encoded or not.",
    "task_id": "The task ID.",
}
"""Description of each path variable."""

QUERY_PARAMETERS: dict[str, tuple[Json, str]] = {
    "stream": (_choice_schema(("false", "true")), "Whether to stream the response."),
    "starting_after": (
        {"type": "integer", "minimum": 0, "maximum": MAX_SEQUENCE_NUMBER},
        "`sequence_number` of the last event that the client has received; with `stream`.",
    ),
    "reset": (
        _choice_schema(RESET_VALUES),
        "What takes text back: `part`, a new text part after `data-reset`; `step`, the chunk `reset-step` (AI SDK 7).",
    ),
    "result": (
        NAMES_SCHEMA,
        "A task whose return value is the result; repeatable. Default: the result tasks of the DAG.",
    ),
    "until": (
        _choice_schema(UNTIL_VALUES),
        "`result`: the stream ends with the outcome. `run`: it ends with the run.",
    ),
    "confirm": (
        _choice_schema(CONFIRM_VALUES),
        "`push`: a result is sent when its task pushes it. `success`: when the task has succeeded as well.",
    ),
    "cursor": (
        {"type": "string"},
        "Resume after this cursor, the last that the client received. The header `Last-Event-ID` takes precedence.",
    ),
    POLYFILL_CURSOR: (
        {"type": "string"},
        "The same as `cursor`, which it takes precedence over, for polyfills of `EventSource` that can't send headers.",
    ),
    "ping": (
        {"type": "string", "default": "15s", "examples": ["2s", "5s", "1m"]},
        "How long the stream may be silent before a `ping`: from 1s to 60s. A shorter interval of the server wins.",
    ),
    "ticket": (
        {"type": "string"},
        "A ticket from `POST /api/v2/stream/tickets`, for clients that cannot send headers. It opens one stream, once.",
    ),
    "timeout": (_duration_schema(DEFAULT_TIMEOUT), "How long to wait for the outcome."),
    "unwrap": (
        FLAG_SCHEMA,
        "Whether to respond with the bare value of the only result task: with 204 if there is none, or an error.",
    ),
    "fail_status": (
        {
            "type": "integer",
            "minimum": FAIL_STATUS_BOUNDS[0],
            "maximum": FAIL_STATUS_BOUNDS[1],
            "default": DEFAULT_FAIL_STATUS,
        },
        "HTTP status of a failure, or of a value that cannot be sent, if `unwrap` is true.",
    ),
    "wait_for_completion": (
        FLAG_SCHEMA,
        "Whether to wait for the outcome. Otherwise the request is forwarded to Airflow unchanged.",
    ),
    "if_exists": (
        _choice_schema(IF_EXISTS),
        "`attach`: use the run with the given ID if it exists already. `fail`: respond with Airflow's error 409.",
    ),
    "on_disconnect": (
        _choice_schema(ON_DISCONNECT),
        "`cancel`: the run is set to failed when no client waits for it any more and its outcome is still open.",
    ),
    "grace": (
        _duration_schema(DEFAULT_GRACE),
        "How long the run continues without any client, with `on_disconnect=cancel`.",
    ),
    "map_index": (
        {"type": "integer", "minimum": -1, "maximum": 999_999_999, "default": -1},
        "Index of an instance of a mapped task.",
    ),
    "iteration": (
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "Iteration of the task loop (Airflow 3.4) around the task.",
    ),
    "interval": (
        {"type": "number", "exclusiveMinimum": 0},
        "Seconds after which an unchanged state is sent again.",
    ),
    "dag_id": (_names_schema(), "Only runs of this DAG; repeatable."),
    "run_id": (_names_schema(), "Only the run with this ID; repeatable."),
    "task_id": (_names_schema(), "Only transitions of this task, none of runs; repeatable."),
    "state": (
        _names_schema(),
        f"Only transitions to this state: {', '.join(KNOWN_STATES)} (no state), or one of a later Airflow; repeatable.",
    ),
    "type": (_names_schema(enum=list(FRAME_TYPES)), "Only frames of this type; repeatable."),
    "limit": (
        {
            "type": "integer",
            "minimum": RUN_LIMIT_BOUNDS[0],
            "maximum": RUN_LIMIT_BOUNDS[1],
            "default": DEFAULT_RUN_LIMIT,
        },
        "Maximum number of runs.",
    ),
    "tag": (_names_schema(), "Only runs of DAGs that have this tag now; repeatable."),
}
"""Schema and description of each query parameter."""

REQUEST_HEADERS: dict[str, tuple[Json, str]] = {
    "Last-Event-ID": ({"type": "string"}, "The same as `cursor`. An `EventSource` sends it when it reconnects."),
    "Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
        "Requests with the same key and the same body use the same run, on all replicas.",
    ),
    "Prefer": (
        {"type": "string", "examples": ["wait=60", "respond-async"]},
        "How long to wait, where the query has no `timeout`: `wait=n` seconds, or not at all (RFC 7240).",
    ),
    "If-None-Match": ({"type": "string"}, "`ETag` of the document that the client has."),
}
"""Schema and description of each request header."""


def describe_path_variables(path: str) -> dict[str, str]:
    """Return the descriptions of the variables in a path, by name."""
    return {name: text for name, text in PATH_VARIABLES.items() if f"{{{name}}}" in path}


def build_query_schema(names: Collection[str]) -> Json:
    """Return the schema of a query as an object (AsyncAPI bindings for HTTP and WebSocket, field `query`)."""
    properties = {
        name: {**schema, "description": text} for name, (schema, text) in QUERY_PARAMETERS.items() if name in names
    }
    return {"type": "object", "properties": properties}


def build_parameters(
    path: str, names: Collection[str] = (), headers: Collection[str] = (), required: str = ""
) -> list[Json]:
    """Return the parameters of an OpenAPI operation.

    Args:
        path: Path template; its variables become parameters.
        names: Query parameters.
        headers: Request headers.
        required: The query parameter that is required, if any.
    """
    text_schema = {"type": "string"}
    return [
        *(
            _build_parameter("path", name, text_schema, text, required=True)
            for name, text in describe_path_variables(path).items()
        ),
        *(
            _build_parameter("query", name, *QUERY_PARAMETERS[name], required=name == required)
            for name in QUERY_PARAMETERS
            if name in names and f"{{{name}}}" not in path
        ),
        *(_build_parameter("header", name, *REQUEST_HEADERS[name]) for name in headers),
    ]


def _build_parameter(location: str, name: str, schema: Json, text: str, *, required: bool = False) -> Json:
    found = {"name": name, "in": location, "schema": schema, "description": text}
    return {**found, "required": True} if required else found
