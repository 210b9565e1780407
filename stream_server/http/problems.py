"""Error responses: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler, Receive, Scope, Send

from stream_server.errors import AirflowRefused, StreamServerError, Throttled
from stream_server.http.endpoints import run_stream

_SLASH_IN_RUN_ID = re.compile(
    r"(?:/api/v2/dags/[^/]+/dagRuns/[^/]+/.+/(?:stream|result|wait|cancel|graph|input)|/runs/[^/]+/[^/]+/.+)\Z",
    re.DOTALL,
)
"""Paths that fit no route because of a slash. ASGI servers decode `%2F`, and so do many proxies."""


class ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


async def raise_not_found(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer a WebSocket handshake for an unknown path with 404, as a request; Starlette's default is a bare 403."""
    raise HTTPException(HTTPStatus.NOT_FOUND)


async def _answer_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, StreamServerError), "registered for that class"
    if isinstance(error, Throttled) and run_stream.is_event_source(connection):
        return run_stream.throttled_response(error, connection.scope["state"]["scheduler"])
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AirflowRefused) and error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    return ProblemResponse(error.problem_body(), error.status, headers)


async def _answer_http_exception(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for that class"
    title = HTTPStatus(error.status_code).phrase
    detail, path, headers = error.detail, connection.scope["path"], dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        kind = "nothing" if connection.scope["type"] == "http" else "no WebSocket"
        detail = f"There is {kind} at {path}"
        if _SLASH_IN_RUN_ID.match(path):
            detail += ". The ID of a run that has a slash can't be part of a URL, encoded or not"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{path} allows {headers['Allow']}, not {connection.scope['method']}"
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": detail}
    return ProblemResponse(body, error.status_code, headers)


async def _answer_unexpected_error(connection: HTTPConnection, error: Exception) -> Response:
    """Answer without details. Starlette raises the exception again, so that the server logs it."""
    body = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Internal error; the server's log has details",
    }
    return ProblemResponse(body, 500)


async def _ignore_disconnect(_connection: HTTPConnection, _error: Exception) -> Response:
    """Return a response that no one receives: the client disconnected before the end of the request body."""
    return Response(status_code=400)


EXCEPTION_HANDLERS: Mapping[Any, ExceptionHandler] = {
    StreamServerError: _answer_error,
    HTTPException: _answer_http_exception,
    ClientDisconnect: _ignore_disconnect,
    Exception: _answer_unexpected_error,
}
