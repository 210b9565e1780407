"""`POST …/dagRuns?wait_for_completion=true`: triggering a DAG through Airflow's API, and staying to hear its answer.

Without that parameter the request is passed on as it is.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import AirflowApi, run_path
from stream_server.auth.authorizer import Caller
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import (
    AirflowRefused,
    BadParameter,
    BadRequest,
    IdempotencyKeyReused,
    NoResult,
    RunNotFound,
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
    STREAM_PARAMETERS,
    WATCH_PARAMETERS,
    negotiate_media_type,
    parse_choice,
    parse_flag,
    parse_run_key,
    parse_seconds,
    parse_watch_options,
    raw_query,
    read_body,
)
from stream_server.http.permission import Permission, authorize_run, ignore_expiry
from stream_server.http.state import State
from stream_server.protocol.bodies import Cancelled
from stream_server.protocol.cursor import ResumePoint, ResumeToken

JSON = "application/json"
CONFLICT = 409
TRIGGER_PARAMETERS = (
    (STREAM_PARAMETERS - {"cursor"})
    | RESPONSE_PARAMETERS
    | {"wait_for_completion", "if_exists", "on_disconnect", "grace"}
)
DEFAULT_GRACE = 5.0
"""Seconds in which somebody must come back to a run that shall not go on without."""

IF_EXISTS = ("fail", "attach")
ON_DISCONNECT = ("continue", "cancel")
"""Values of these parameters; the first is the default."""

MAX_KEY_LENGTH = 255
FORWARDED_HEADERS = ("accept", "content-type")
HOP_HEADERS = frozenset({"connection", "content-encoding", "content-length", "date", "keep-alive", "transfer-encoding"})
"""Headers of Airflow's answer that tell about its connection to us, or about a compression that has been undone."""


class TriggerOptions(NamedTuple):
    """What a request wants beside the run."""

    response: ResponseOptions
    attach: bool
    """Whether a run that exists already is as good as a new one."""

    cancel_after: float | None
    """Seconds after which a run is stopped that nobody waits for any more; `None` lets it go on."""


class TriggeredRun(NamedTuple):
    """A run, and from where it can be heard."""

    key: RunKey
    resume_point: ResumePoint | None
    """When it did not exist yet; `None` where it was there before."""


async def trigger_run(request: Request) -> Response:
    """Answer the request."""
    refuse_foreign_origin(request)
    if not parse_flag(request, "wait_for_completion"):
        return await _forward_to_airflow(request)
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    parse_watch_options(request, TRIGGER_PARAMETERS)
    plan = _parse_options(request)
    airflow = airflow_api_for(request, caller)
    # Who may not read what he triggers had better know before.
    await state["authorizer"].check_dag(caller, request.path_params["dag_id"])
    begun = await _trigger_or_attach(request, caller, airflow, plan)
    form = negotiate_media_type(request, JSON, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE)
    with _name_run_in_errors(begun.key):
        permission = await authorize_run(state["authorizer"], caller, begun.key)
        asked = permission.restrict_options(
            replace(parse_watch_options(request, TRIGGER_PARAMETERS), include_output=form != JSON)
        )
        on_gone = await _cancelling(state, airflow, begun.key, asked, plan)
        if form == JSON:
            return await _respond(request, permission, begun, asked, plan=plan, on_gone=on_gone)
    return await _stream(request, permission, begun, asked, on_gone)


async def cancel_run(request: Request) -> Response:
    """Answer `POST …/dagRuns/{run_id}/cancel`: the run is set to failed, with the caller's own rights."""
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
        raise BadParameter("grace= means something only together with on_disconnect=cancel")
    return TriggerOptions(parse_response_options(request), attach, grace if cancels else None)


async def _trigger_or_attach(
    request: Request, caller: Caller, airflow: AirflowApi, plan: TriggerOptions
) -> TriggeredRun:
    """Trigger the run, or find the one that the request means."""
    dag_id = str(request.path_params["dag_id"])
    state: State = request.scope["state"]
    body = await _read_json_object(request)
    since = ResumePoint(ResumeToken(state["hub"].cursor), before_creation=True)
    claimed = await _claim_key(request, dag_id, body)
    attach = plan.attach or (claimed is not None and not claimed.is_run_older)
    named = claimed.run_id if claimed is not None else body.get("dag_run_id")
    if claimed is not None:
        body = {**body, "dag_run_id": claimed.run_id}
    try:
        return TriggeredRun(await airflow.trigger_run(dag_id, body), since)
    except AirflowRefused as error:
        if error.status == CONFLICT and named is not None and attach:
            # The conflict may be about something else, such as the logical date.
            key = RunKey(dag_id, named)
            await state["authorizer"].check_run(caller, key)
            if await _run_exists(state, key):
                return TriggeredRun(key, None)
        if claimed is not None and claimed.is_new:
            await state["idempotency_keys"].release_run(claimed.digest, claimed.run_id)
        raise


async def _run_exists(state: State, key: RunKey) -> bool:
    try:
        (await state["hub"].subscribe(key, WatchOptions())).close()
    except RunNotFound:
        return False
    return True


async def _cancelling(
    state: State, airflow: AirflowApi, key: RunKey, asked: WatchOptions, plan: TriggerOptions
) -> Callable[[], None] | None:
    """Return what to call where the client goes before the end."""
    if plan.cancel_after is None:
        return None
    await state["cancellations"].register_run(key)
    return partial(
        state["cancellations"].schedule_cancel, key, asked, partial(airflow.fail_run, key), plan.cancel_after
    )


async def _stream(
    request: Request,
    permission: Permission,
    begun: TriggeredRun,
    asked: WatchOptions,
    on_gone: Callable[[], None] | None,
) -> Response:
    state: State = request.scope["state"]
    headers = _build_run_headers(request, begun.key, "stream", STREAM_PARAMETERS)
    try:
        with _name_run_in_errors(begun.key):
            subscription = await state["hub"].subscribe(begun.key, asked, resume_from=begun.resume_point)
    except Unavailable as error:
        return unavailable_response(request, error, headers)
    permission.bind(subscription)
    return build_stream_response(request, subscription, headers, on_gone)


async def _respond(
    request: Request,
    permission: Permission,
    begun: TriggeredRun,
    asked: WatchOptions,
    *,
    plan: TriggerOptions,
    on_gone: Callable[[], None] | None,
) -> Response:
    state: State = request.scope["state"]
    key = begun.key
    subscription = await state["hub"].subscribe(key, asked, resume_from=begun.resume_point)
    permission.bind(subscription, ignore_expiry)
    answer = await wait_for_outcome(request, subscription, key, plan.response.timeout, on_gone)
    headers = _build_run_headers(request, key, "result", WATCH_PARAMETERS | RESPONSE_PARAMETERS)
    if answer.outcome == "pending":
        headers["Location"] = headers["Content-Location"]
    try:
        return build_response(answer, plan.response, headers)
    except StreamServerError as error:
        error.headers = headers
        raise


@contextmanager
def _name_run_in_errors(key: RunKey) -> Iterator[None]:
    """Have errors name the run that is there: who only reads what is wrong would trigger another."""
    try:
        yield
    except StreamServerError as error:
        error.headers = {"Location": run_path(key), **error.headers}
        if not isinstance(error, NoResult):
            error.args = (f"{error}. Run {key.run_id!r} was triggered; follow it at {run_path(key)}",)
        raise


def _build_run_headers(request: Request, key: RunKey, what: str, parameters: frozenset[str]) -> dict[str, str]:
    """Return the headers that name the run, and where a broken call can be taken up (RFC 9110 sections 8.7, 10.2.2)."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name in parameters]
    query = f"?{urlencode(kept)}" if kept else ""
    return {"Location": run_path(key), "Content-Location": f"{run_path(key)}/{what}{query}"}


class KeyClaim(NamedTuple):
    """The run that belongs to an idempotency key."""

    digest: bytes
    run_id: str
    is_new: bool
    """Whether nobody had used the key before."""

    is_run_older: bool
    """Whether the run had been there before the key was used."""


async def _claim_key(request: Request, dag_id: str, body: Mapping[str, Any]) -> KeyClaim | None:
    """Claim a run for the `Idempotency-Key` of a request, if it has one (draft-ietf-httpapi-idempotency-key-header).

    Raises:
        BadRequest: The key is too long.
        KeyReused: It was used for another request.
    """
    state: State = request.scope["state"]
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"The Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters")
    digest = _compute_digest([dag_id, key])
    named = body.get("dag_run_id")
    # To be asked before the claim: whoever comes with the same key meanwhile may be faster than we are.
    existed = named is not None and await _run_exists(state, RunKey(dag_id, named))
    run_id = named or f"manual__{datetime.now(timezone.utc).isoformat()}_{secrets.token_hex(4)}"
    claim = await state["idempotency_keys"].claim_run(
        digest, _compute_digest(body), run_id, state["settings"].idempotency_ttl
    )
    if not claim.is_same_request:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request to this DAG; use a new key for a new request"
        )
    return KeyClaim(digest, claim.run_id, claim.is_new, existed and claim.is_new)


def _compute_digest(what: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(what, order="deterministic")).digest()


async def _read_json_object(request: Request) -> dict[str, Any]:
    """Return the body.

    Raises:
        BadRequest: It is no JSON object, or names a run by something else than a string.
        TooLarge: It is larger than `STREAM_SERVER_MAX_BODY_BYTES`.
    """
    raw = await read_body(request)
    try:
        body = msgspec.json.decode(raw or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body must be a JSON object, as Airflow's endpoint has it: {error}") from None
    if not isinstance(body.get("dag_run_id"), str | None):
        raise BadRequest("dag_run_id must be a string, or be left out")
    return body


async def _forward_to_airflow(request: Request) -> Response:
    airflow = airflow_api_for(request, await identify_caller(request))
    headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
    path = request.scope["raw_path"].decode() + raw_query(request)
    answer = await airflow.forward("POST", path, await read_body(request), headers)
    response = Response(answer.content, answer.status_code)
    for name, value in answer.headers.multi_items():
        if name not in HOP_HEADERS:
            response.headers.append(name, value)
    return response
