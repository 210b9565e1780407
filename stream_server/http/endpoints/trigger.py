"""`POST …/dagRuns?wait_for_completion=true`: trigger a DAG through Airflow, and wait for its outcome or stream it.

Without that parameter, the request is forwarded to Airflow unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import run_path
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import (
    BadParameter,
    BadRequest,
    StreamServerError,
    Unavailable,
)
from stream_server.http.caller import airflow_api_for, identify_caller, refuse_foreign_origin
from stream_server.http.delivery import ndjson, sse
from stream_server.http.endpoints.result import (
    RESPONSE_PARAMETERS,
    ResponseOptions,
    build_response,
    parse_response_options,
    wait_for_outcome,
)
from stream_server.http.endpoints.run_stream import build_stream_response, unavailable_response
from stream_server.http.params import (
    CURSOR_PARAMETERS,
    STREAM_PARAMETERS,
    WATCH_PARAMETERS,
    negotiate_media_type,
    parse_choice,
    parse_flag,
    parse_run_key,
    parse_seconds,
    parse_watch_options,
    public_path,
    raw_query,
    read_body,
)
from stream_server.http.permission import Permission, authorize_run, ignore_expiry
from stream_server.http.state import State
from stream_server.http.triggering import (
    TriggeredRun,
    name_run_in_errors,
    prepare_cancellation,
    trigger_or_attach,
)
from stream_server.protocol.bodies import Cancelled
from stream_server.protocol.schema import INVALID_JSON

JSON = "application/json"
TRIGGER_PARAMETERS = (
    (STREAM_PARAMETERS - CURSOR_PARAMETERS)
    | RESPONSE_PARAMETERS
    | {"wait_for_completion", "if_exists", "on_disconnect", "grace"}
)
DEFAULT_GRACE = 5.0
"""Seconds that a run continues without any client, with `on_disconnect=cancel`."""

IF_EXISTS = ("fail", "attach")
ON_DISCONNECT = ("continue", "cancel")
"""Values of the parameters; the first is the default."""

FORWARDED_HEADERS = ("accept", "content-type")
UNFORWARDED_HEADERS = frozenset(
    {"connection", "content-encoding", "content-length", "date", "keep-alive", "transfer-encoding"}
)
"""Response headers of Airflow that describe its connection to this server, or the compression that httpx removed."""


class TriggerOptions(NamedTuple):
    response: ResponseOptions
    attach: bool
    """Whether to use an existing run."""

    cancel_after: float | None
    """Seconds after which a run without clients is set to failed; `None` lets it continue."""


async def trigger_run(request: Request) -> Response:
    refuse_foreign_origin(request)
    if not parse_flag(request, "wait_for_completion"):
        return await _forward_to_airflow(request)
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    parse_watch_options(request, TRIGGER_PARAMETERS)
    options = _parse_options(request)
    airflow = airflow_api_for(request, caller)
    # A caller without read permission gets the error before a run exists.
    dag_id = request.path_params["dag_id"]
    await state["authorizer"].check_dag(caller, dag_id)
    body, key = await _read_json_object(request), request.headers.get("idempotency-key")
    run = await trigger_or_attach(state, caller, airflow, dag_id, body, key=key, attach=options.attach)
    form = negotiate_media_type(request, JSON, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE)
    with name_run_in_errors(request, run.key):
        permission = await authorize_run(state["authorizer"], caller, run.key)
        watch_options = permission.restrict_options(
            replace(parse_watch_options(request, TRIGGER_PARAMETERS), include_output=form != JSON)
        )
        on_gone = await prepare_cancellation(state, airflow, run.key, watch_options, options.cancel_after)
        if form == JSON:
            return await _respond(request, permission, run, watch_options, options=options, on_gone=on_gone)
    return await _stream(request, permission, run, watch_options, on_gone)


async def cancel_run(request: Request) -> Response:
    """Set a run to failed, with the caller's rights (`POST …/dagRuns/{run_id}/cancel`)."""
    refuse_foreign_origin(request)
    key = parse_run_key(request)
    state = await airflow_api_for(request, await identify_caller(request)).fail_run(key)
    cancelled = Cancelled(dag_id=key.dag_id, dag_run_id=key.run_id, state=state)
    return Response(msgspec.json.encode(cancelled), media_type=JSON)


def _parse_options(request: Request) -> TriggerOptions:
    attach = parse_choice(request, "if_exists", IF_EXISTS) == "attach"
    cancels = parse_choice(request, "on_disconnect", ON_DISCONNECT) == "cancel"
    grace = parse_seconds(request, "grace", DEFAULT_GRACE)
    if not cancels and "grace" in request.query_params:
        raise BadParameter("`grace` is allowed only together with on_disconnect=cancel")
    return TriggerOptions(parse_response_options(request), attach, grace if cancels else None)


async def _stream(
    request: Request,
    permission: Permission,
    run: TriggeredRun,
    watch_options: WatchOptions,
    on_gone: Callable[[], None] | None,
) -> Response:
    state: State = request.scope["state"]
    headers = _build_run_headers(request, run.key, "stream", STREAM_PARAMETERS)
    try:
        with name_run_in_errors(request, run.key):
            subscription = await state["hub"].subscribe(run.key, watch_options, resume_from=run.resume_point)
    except Unavailable as error:
        return unavailable_response(request, error, headers)
    permission.bind(subscription)
    return build_stream_response(request, subscription, headers, on_gone)


async def _respond(
    request: Request,
    permission: Permission,
    run: TriggeredRun,
    watch_options: WatchOptions,
    *,
    options: TriggerOptions,
    on_gone: Callable[[], None] | None,
) -> Response:
    state: State = request.scope["state"]
    key = run.key
    subscription = await state["hub"].subscribe(key, watch_options, resume_from=run.resume_point)
    permission.bind(subscription, ignore_expiry)
    answer = await wait_for_outcome(request, subscription, key, options.response.answer_at, on_gone)
    headers = _build_run_headers(request, key, "result", WATCH_PARAMETERS | RESPONSE_PARAMETERS)
    if answer.outcome == "pending":
        headers["Location"] = headers["Content-Location"]
    try:
        return build_response(answer, options.response, headers)
    except StreamServerError as error:
        raise error.copy_with(str(error), headers) from error


def _build_run_headers(request: Request, key: RunKey, what: str, parameters: frozenset[str]) -> dict[str, str]:
    """Return the URLs of the run, and of the request that resumes a broken call (RFC 9110 sections 8.7 and 10.2.2)."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name in parameters]
    query = f"?{urlencode(kept)}" if kept else ""
    path = public_path(request, run_path(key))
    return {"Location": path, "Content-Location": f"{path}/{what}{query}"}


async def _read_json_object(request: Request) -> dict[str, Any]:
    """Return the body.

    Raises:
        BadRequest: The body is not a JSON object, or `dag_run_id` is not a string.
        RequestTooLarge: The body is larger than `STREAM_SERVER_MAX_BODY_BYTES`.
    """
    raw = await read_body(request)
    try:
        body = msgspec.json.decode(raw or b"{}", type=dict[str, Any])
    except INVALID_JSON as error:
        raise BadRequest(f"The body must be a JSON object as for Airflow's endpoint: {error}") from None
    if not isinstance(body.get("dag_run_id"), str | None):
        raise BadRequest("`dag_run_id` must be a string, or be omitted")
    return body


async def _forward_to_airflow(request: Request) -> Response:
    airflow = airflow_api_for(request, await identify_caller(request))
    headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
    path = request.scope["raw_path"].decode() + raw_query(request)
    answer = await airflow.forward("POST", path, await read_body(request), headers)
    response = Response(answer.content, answer.status_code)
    for name, value in answer.headers.multi_items():
        if name not in UNFORWARDED_HEADERS:
            response.headers.append(name, value)
    return response
