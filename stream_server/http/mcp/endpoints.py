"""The endpoint `/mcp`: `POST` for messages, `GET` to resume a response. Sessions need no end."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowRefused, RunNotFound, StreamServerError, Unauthenticated
from stream_server.http.caller import refuse_foreign_origin
from stream_server.http.chat.caller import identify_chat_caller
from stream_server.http.chat.run import watch_run
from stream_server.http.mcp.authorization import name_authorization_servers
from stream_server.http.mcp.messages import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    STATUSES,
    UNSUPPORTED_VERSION,
    Message,
    RpcError,
    build_error,
    build_response,
    decode_message,
)
from stream_server.http.mcp.methods import build_session_id, handle_method
from stream_server.http.mcp.references import CallReference, Session, decode_reference
from stream_server.http.mcp.requests import (
    SESSION_HEADER,
    SESSION_VERSIONS,
    McpRequest,
    SessionUnknown,
    is_modern_request,
    read_request,
)
from stream_server.http.mcp.results import build_text
from stream_server.http.mcp.tool_calls import answer_elicitation, cancel_call, stream_call
from stream_server.http.params import read_body
from stream_server.http.state import State

ACCEPTED, BAD_REQUEST, FORBIDDEN, NOT_FOUND, METHOD_NOT_ALLOWED = 202, 400, 403, 404, 405
PASSED_ON = (401, 429, 503)
"""Statuses of errors that clients handle themselves; an agent could do nothing about them."""


async def receive_message(request: Request) -> Response:
    """Handle a message of a client."""
    refuse_foreign_origin(request)
    message: Message | None = None
    try:
        message = decode_message(await read_body(request))
        with name_authorization_servers(request):
            return await _handle_message(request, message)
    except RpcError as error:
        return _respond_with_error(message, error, _select_status(message, error, request))
    except SessionUnknown:
        no_session = RpcError(INVALID_REQUEST, "There is no such session; begin with `initialize`")
        return _respond_with_error(message, no_session, NOT_FOUND)


async def _handle_message(request: Request, message: Message) -> Response:
    async with identify_chat_caller(request) as caller:
        await _check_credential(request, caller)
        if message.method is msgspec.UNSET:
            return await _receive_response(request, caller, message)
        if message.id is msgspec.UNSET:
            return await _receive_notification(request, caller, message)
        return await _handle_request(request, caller, read_request(message, request.headers))


async def resume_response(request: Request) -> Response:
    """Continue the response to a call after an event (2025-11-25, basic/transports, Resumability)."""
    refuse_foreign_origin(request)
    reference = decode_reference(request.headers.get("last-event-id"), CallReference)
    if reference is None or reference.request_id is None:
        return Response(status_code=METHOD_NOT_ALLOWED, headers={"Allow": "POST"})
    session = decode_reference(request.headers.get(SESSION_HEADER), Session)
    wanted = McpRequest(
        reference.request_id,
        "tools/call",
        {"_meta": {"progressToken": reference.progress_token}},
        SESSION_VERSIONS[0],
        session is not None and session.elicits,
        False,
    )
    with name_authorization_servers(request):
        async with identify_chat_caller(request) as caller:
            return stream_call(request, await watch_run(request, caller, reference.key), wanted, reference)


async def _check_credential(request: Request, caller: Caller) -> None:
    """Raise the error for a caller whom Airflow does not know. Some methods need no other right."""
    state: State = request.scope["state"]
    try:
        await state["authorizer"].check_dags(caller)
    except AirflowRefused as error:
        if error.status != FORBIDDEN:
            raise


def _select_status(message: Message | None, error: RpcError, request: Request) -> int:
    """Return the status of an error. Before revision 2026-07-28, errors of most requests have 200."""
    is_request = message is not None and message.method is not msgspec.UNSET and message.id is not msgspec.UNSET
    if message is None or not is_request:
        return BAD_REQUEST
    if error.code == UNSUPPORTED_VERSION or is_modern_request(message, request.headers):
        return STATUSES.get(error.code, 200)
    return 200


async def _handle_request(request: Request, caller: Caller, wanted: McpRequest) -> Response:
    headers = {SESSION_HEADER: build_session_id(wanted)} if wanted.method == "initialize" else {}
    try:
        result = await handle_method(request, caller, wanted)
    except StreamServerError as error:
        if wanted.method != "tools/call" or error.status in PASSED_ON or isinstance(error, Unauthenticated):
            raise
        if wanted.is_old_task:
            raise RpcError(INVALID_PARAMS, str(error)) from None
        # The agent can correct its arguments, or report the error.
        result = build_text(str(error), is_error=True)
    if isinstance(result, Response):
        return result
    if wanted.is_modern:
        result = {"resultType": "complete", **result}
    return _respond(build_response(wanted.id, result), 200, headers)


async def _receive_notification(request: Request, caller: Caller, message: Message) -> Response:
    if message.method == "notifications/cancelled" and not is_modern_request(message, request.headers):
        params = message.params if isinstance(message.params, dict) else {}
        await cancel_call(request, caller, request.headers.get(SESSION_HEADER), params.get("requestId"))
    return Response(status_code=ACCEPTED)


async def _receive_response(request: Request, caller: Caller, message: Message) -> Response:
    """Handle the answer of a user to a request for human input."""
    reference = decode_reference(message.id, CallReference)
    if reference is None:
        raise RpcError(INVALID_REQUEST, "This server has sent no request with this `id`")
    response: Any = None if message.result is msgspec.UNSET else message.result
    try:
        await answer_elicitation(request, caller, reference, response)
    except (AirflowRefused, RunNotFound) as error:
        if error.status in PASSED_ON:
            raise
        raise RpcError(INVALID_PARAMS, str(error)) from None
    return Response(status_code=ACCEPTED)


def _respond_with_error(message: Message | None, error: RpcError, status: int) -> Response:
    known = None if message is None or message.id is msgspec.UNSET else message.id
    return _respond(build_error(known, error), status, {})


def _respond(body: Any, status: int, headers: dict[str, str]) -> Response:  # noqa: ANN401 # any JSON value
    return Response(
        msgspec.json.encode(body), status, {"Cache-Control": "no-store", **headers}, media_type="application/json"
    )
