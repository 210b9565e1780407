"""Letting callers in, as long as they have and do no more than they may."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from stream_server.admission import address_caller
from stream_server.errors import NulInText
from stream_server.transports.places import PLACE, now, take_ticket
from stream_server.transports.request import State


class Admitted:
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
        take_ticket(scope)
        client = scope.get("client")
        place = state["admission"].enter(address_caller(client and client[0]), now())
        scope[PLACE] = place
        try:
            await self._app(scope, receive, send)
        finally:
            if not place.held:
                place.leave()
