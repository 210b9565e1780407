"""Middleware that answers errors as OpenAI's API does."""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_server.errors import AirflowRefused, BadRequest, StreamServerError
from stream_server.http.openai.chunks import build_error

log = logging.getLogger(__name__)

BAD_REQUEST, UNPROCESSABLE, INTERNAL_ERROR = 400, 422, 500
NO_RETRY = {"x-should-retry": "false"}
"""Keeps OpenAI's SDKs from sending the request again (`openai._base_client`, `_should_retry`)."""


class ErrorResponseMiddleware:
    """ASGI middleware of a route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def observe(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except StreamServerError as error:
            if has_started:
                raise
            await build_error_response(error)(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception:
            if not has_started:
                # A run may exist.
                body = build_error("Internal error; the server's log has details", INTERNAL_ERROR, "internal_error")
                await JSONResponse(body, INTERNAL_ERROR, NO_RETRY)(scope, receive, send)
            raise


def build_error_response(error: StreamServerError) -> JSONResponse:
    """Return the response to an error. If it names a run, the client is asked not to try again."""
    status = BAD_REQUEST if isinstance(error, BadRequest) and error.status == UNPROCESSABLE else error.status
    headers = dict(error.headers)
    if "Location" in headers:
        headers |= NO_RETRY
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AirflowRefused) and error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    return JSONResponse(build_error(str(error), status, error.title.lower().replace(" ", "_")), status, headers)
