"""Letting callers in, as long as they have and do no more than they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_server.auth.rate_limits import RateLimits, caller_of_address
from stream_server.errors import NulInText
from stream_server.http.caller import read_credential
from stream_server.http.delivery.scope import OBSERVED_HEAD_KEY, SLOT_KEY
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.http.request_slot import extract_ticket, now
from stream_server.http.state import State

MIN_ERROR_STATUS = 400
"""HTTP statuses below say that a credential was good."""


def as_asgi_app(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Return what answers a request as ASGI has it. What is raised is left to the application, which tells it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return answer


class RateLimitMiddleware:
    """ASGI middleware of a route: each request takes a place, and leaves it at its end.

    A stream that outlives its request keeps the place (`places.keep_place`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise what tells the caller that he has too much."""
        state: State = scope["state"]
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise NulInText
        extract_ticket(scope)
        admission, identity = state["rate_limits"], self._claimed_caller(scope)
        client = scope.get("client")
        # Whoever makes up credentials remains his address.
        known = identity is not None and admission.is_verified(identity)
        place = admission.acquire(identity if known else caller_of_address(client and client[0]), now())
        scope[SLOT_KEY] = place
        if identity is not None and not known:
            send = _mark_verified_on_success(admission, identity, send)
            scope[OBSERVED_HEAD_KEY] = True
        try:
            await self._app(scope, receive, send)
        finally:
            if not place.outlives_request:
                place.release()

    def _claimed_caller(self, scope: Scope) -> str | None:
        """Return who the caller is if his credential is good; `None` where that is not asked here."""
        state: State = scope["state"]
        if not state["authorizer"].requires_credential or scope["path"] == PROBE_PATH:
            return None
        credential = read_credential(HTTPConnection(scope))
        return state["rate_limits"].caller_of_credential(credential) if credential else None


def _mark_verified_on_success(admission: RateLimits, identity: str, send: Send) -> Send:
    """Have a credential vouched for by an answer that does not refuse it."""

    async def vouching(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < MIN_ERROR_STATUS:
            admission.mark_verified(identity)
        await send(message)

    return vouching
