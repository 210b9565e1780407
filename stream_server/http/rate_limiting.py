"""Middleware that enforces the rate limits of callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_server.auth.rate_limits import RateLimits, caller_of_address
from stream_server.errors import NulInText
from stream_server.http.caller import read_credential
from stream_server.http.delivery.asgi_scope import OBSERVED_HEAD_KEY, SLOT_KEY
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.http.request_slot import extract_ticket, now
from stream_server.http.state import State

MIN_ERROR_STATUS = 400
"""A response with a lower status shows that the credential was valid."""


def as_asgi_app(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Return an endpoint as ASGI application. The exception handlers of the main application answer its errors."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return answer


class AddressRateMiddleware:
    """ASGI middleware of what needs no credential: each request counts toward the rate of the client's address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        scope["state"]["rate_limits"].record_join(caller_of_address(client and client[0]), now())
        await self._app(scope, receive, send)


class RateLimitMiddleware:
    """ASGI middleware of a route: each request acquires a slot of its caller, and releases it at its end.

    A stream that outlives its request keeps the slot (`delivery.scope.keep_slot`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: State = scope["state"]
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise NulInText
        extract_ticket(scope)
        limits, identity = state["rate_limits"], self._claimed_caller(scope)
        client = scope.get("client")
        # A credential that was not verified yet counts for the address: made-up credentials don't evade the limit.
        known = identity is not None and limits.is_verified(identity)
        slot = limits.acquire(identity if known else caller_of_address(client and client[0]), now())
        scope[SLOT_KEY] = slot
        if identity is not None and not known:
            send = _mark_verified_on_success(limits, identity, send)
            scope[OBSERVED_HEAD_KEY] = True
        try:
            await self._app(scope, receive, send)
        finally:
            if not slot.outlives_request:
                slot.release()

    def _claimed_caller(self, scope: Scope) -> str | None:
        """Return the caller by their credential, which may be invalid; `None` without one, or where none is needed."""
        state: State = scope["state"]
        if not state["authorizer"].requires_credential or scope["path"] == PROBE_PATH:
            return None
        credential = read_credential(HTTPConnection(scope))
        return state["rate_limits"].caller_of_credential(credential) if credential else None


def _mark_verified_on_success(limits: RateLimits, identity: str, send: Send) -> Send:
    """Return a `send` that marks a caller as verified when the response is no refusal."""

    async def send_and_mark(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < MIN_ERROR_STATUS:
            limits.mark_verified(identity)
        await send(message)

    return send_and_mark
