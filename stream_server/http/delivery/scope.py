"""What server, middleware and endpoints put into the ASGI scope of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Scope

from stream_server.auth.rate_limits import CallerSlot


def header_of(scope: Scope, name: bytes) -> str | None:
    """Return the first header of a request that has a name, given in lower case.

    `Headers` of Starlette decodes whatever it looks at; a stream looks for a handful of headers.
    """
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


PLACE = "stream_server.place"
"""Where a scope has its caller's `Place`."""

OVERHEARD = "stream_server.overheard"
"""In a scope where somebody waits for the head of its answer."""

TICKET = "stream_server.ticket"
"""Where a scope has the ticket that stood in its URL."""


def keep_place(scope: Scope, over: asyncio.Future[Any]) -> None:
    """Have a stream keep the place of its request until it is over."""
    place: CallerSlot | None = scope.get(PLACE)
    if place is not None:
        place.outlives_request = True
        over.add_done_callback(place.release)


LINE = "stream_server.line"
"""Where a scope has the `Line` of its connection, if the server is ours."""

SEND = "stream_server.send"
"""Where a scope has the `send` of the server itself: headers go through all middlewares; what follows them need not."""
