"""What may be asked for: each parameter once, with its bounds and its default, for all descriptions. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from stream_server.http.endpoints.firehose import KNOWN_STATES, MAX_FILTER_VALUES
from stream_server.http.endpoints.lists import DEFAULT_RUN_LIMIT, RUN_LIMIT_BOUNDS
from stream_server.http.endpoints.result import DEFAULT_FAIL_STATUS, DEFAULT_TIMEOUT, FAIL_STATUS_BOUNDS
from stream_server.http.endpoints.trigger import DEFAULT_GRACE, IF_EXISTS, MAX_KEY_LENGTH, ON_DISCONNECT
from stream_server.http.params import CONFIRM, UNTIL
from stream_server.hub.firehose import FRAME_TYPES
from stream_server.protocol.frames import NO_STATUS
from stream_server.protocol.schema import Json

DURATION_EXAMPLES = ["500ms", "5s", "2m", "1h", "2.5"]
"""Examples of durations; a plain number is one of seconds."""


def _duration_schema(seconds: float) -> Json:
    return {"type": "string", "default": f"{seconds:g}s", "examples": DURATION_EXAMPLES}


def _choice_schema(values: tuple[str, ...]) -> Json:
    return {"type": "string", "enum": list(values), "default": values[0]}


def _names_schema(**further: Any) -> Json:  # noqa: ANN401
    return {
        "type": "array",
        "items": {"type": "string", **(further or {"minLength": 1})},
        "maxItems": MAX_FILTER_VALUES,
    }


SECURITY_SCHEMES: Json = {
    "airflowToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The caller's own token of Airflow's API; what is done, is done with its rights.",
    },
    "airflowCookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "_token",
        "description": "The same as a cookie of Airflow's pages. All cookies go on to Airflow.",
    },
}
"""How callers say who they are."""

FLAG_SCHEMA: Json = {"type": "boolean", "default": False}

NAMES_SCHEMA: Json = {"type": "array", "items": {"type": "string", "minLength": 1}}

PATH_VARIABLES: dict[str, str] = {
    "dag_id": "The DAG.",
    "run_id": "The run, as Airflow names it; percent-encoded or not.",
}
"""What the variables of paths mean."""

QUERY_PARAMETERS: dict[str, tuple[Json, str]] = {
    "result": (NAMES_SCHEMA, "A task whose return value is the answer; repeatable. Without it: those of the DAG."),
    "until": (
        _choice_schema(UNTIL),
        "`result`: the stream ends with the outcome. `run`: it goes on to the end of the run.",
    ),
    "confirm": (
        _choice_schema(CONFIRM),
        "`push`: a result is told when it is pushed. `success`: when its task has succeeded as well.",
    ),
    "cursor": (
        {"type": "string"},
        "Where to go on: the last cursor that the client received. The header `Last-Event-ID` counts more.",
    ),
    "ticket": (
        {"type": "string"},
        "A ticket of `POST /api/v2/stream/tickets`, for clients that can send no header; it opens one stream, once.",
    ),
    "timeout": (_duration_schema(DEFAULT_TIMEOUT), "How long to wait for the answer."),
    "unwrap": (
        FLAG_SCHEMA,
        "Whether to answer with the bare value of the only result task, and with an error if there is none.",
    ),
    "fail_status": (
        {
            "type": "integer",
            "minimum": FAIL_STATUS_BOUNDS[0],
            "maximum": FAIL_STATUS_BOUNDS[1],
            "default": DEFAULT_FAIL_STATUS,
        },
        "HTTP status that tells a failure where `unwrap` is true.",
    ),
    "wait_for_completion": (
        FLAG_SCHEMA,
        "Whether to stay and hear the answer; without it the request is passed on as it is.",
    ),
    "if_exists": (
        _choice_schema(IF_EXISTS),
        "`attach`: a run that exists already under the given name is as good as a new one.",
    ),
    "on_disconnect": (
        _choice_schema(ON_DISCONNECT),
        "`cancel`: the run is set to failed when nobody waits for it any more, and what was asked of it is still open.",
    ),
    "grace": (
        _duration_schema(DEFAULT_GRACE),
        "How long somebody may take to come back to the run, with `on_disconnect=cancel`.",
    ),
    "interval": (
        {"type": "number", "exclusiveMinimum": 0},
        "Seconds after which the state is told again where it does not change.",
    ),
    "dag_id": (_names_schema(), "Only runs of this DAG; repeatable."),
    "run_id": (_names_schema(), "Only this run; repeatable."),
    "task_id": (_names_schema(), "Only transitions of this task, and none of runs; repeatable."),
    "state": (
        _names_schema(enum=list(KNOWN_STATES)),
        f"Only transitions to this state, `{NO_STATUS}` for none; repeatable.",
    ),
    "type": (_names_schema(enum=list(FRAME_TYPES)), "Only frames of this type; repeatable."),
    "limit": (
        {
            "type": "integer",
            "minimum": RUN_LIMIT_BOUNDS[0],
            "maximum": RUN_LIMIT_BOUNDS[1],
            "default": DEFAULT_RUN_LIMIT,
        },
        "How many runs at most.",
    ),
    "tag": (_names_schema(), "Only runs of DAGs that have this tag now; repeatable."),
}
"""Schema and meaning of each parameter of a query."""

REQUEST_HEADERS: dict[str, tuple[Json, str]] = {
    "Last-Event-ID": ({"type": "string"}, "The same as `cursor`; a returning `EventSource` sends it by itself."),
    "Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
        "The same key with the same body stands for the same run, from whichever replica.",
    ),
    "If-None-Match": ({"type": "string"}, "`ETag` of the description that the client has."),
}
"""Schema and meaning of each header of a request."""


def describe_path_variables(path: str) -> dict[str, str]:
    """Return what the variables of a path mean, by name."""
    return {name: text for name, text in PATH_VARIABLES.items() if f"{{{name}}}" in path}


def build_query_schema(names: Collection[str]) -> Json:
    """Return a query as the schema of an object, as the bindings of AsyncAPI want it."""
    properties = {
        name: {**schema, "description": text} for name, (schema, text) in QUERY_PARAMETERS.items() if name in names
    }
    return {"type": "object", "properties": properties}


def build_parameters(
    path: str, names: Collection[str] = (), headers: Collection[str] = (), required: str = ""
) -> list[Json]:
    """Return the parameters of an operation, as OpenAPI wants them.

    Args:
        path: With its variables in braces.
        names: Those of the query.
        headers: Those that mean something here.
        required: The one of the query that must be given.
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


def _build_parameter(place: str, name: str, schema: Json, text: str, *, required: bool = False) -> Json:
    found = {"name": name, "in": place, "schema": schema, "description": text}
    return {**found, "required": True} if required else found
