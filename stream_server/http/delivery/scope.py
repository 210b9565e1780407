"""What server, middleware and endpoints put into the ASGI scope of a request."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.types import Scope

from stream_server.auth.rate_limits import CallerSlot
from stream_server.hub.subscription import Subscription


def find_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of a request that has a name, given in lower case.

    `Headers` of Starlette decodes whatever it looks at; a stream looks for a handful of headers.
    """
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


SLOT_KEY = "stream_server.place"
"""Where a scope has its caller's `Place`."""

OBSERVED_HEAD_KEY = "stream_server.overheard"
"""In a scope where somebody waits for the head of its answer."""

TICKET_KEY = "stream_server.ticket"
"""Where a scope has the ticket that stood in its URL."""


def keep_slot(scope: Scope, subscription: Subscription) -> None:
    """Have a stream keep the place of its request until its subscription is closed."""
    place: CallerSlot | None = scope.get(SLOT_KEY)
    if place is not None:
        place.outlives_request = True
        subscription.on_close(place.release)


SERVER_SEND_KEY = "stream_server.send"
"""Where a scope has the `send` of the server itself: headers go through all middlewares; what follows them need not."""

CONNECTION = "stream_server.connection"
"""Extension with the connection of a request as a `writers.Line`, if the server is ours."""

RESPONSE = "stream_server.response"
"""Extension with the `ServerResponse` to an HTTP request, if the server is uvicorn."""


class ServerResponse(Protocol):
    """A response that can be ended before its body is complete, for which ASGI has no message."""

    def reset(self) -> None:
        """Close the connection after what was written, without an end of the body."""

    def abort(self) -> None:
        """Close the connection at once. What the client has not read is discarded."""


def find_extension(scope: Scope, name: str) -> Any:  # noqa: ANN401 # an extension is anything
    """Return an extension of a scope, or `None` (ASGI specification, "Extensions")."""
    return (scope.get("extensions") or {}).get(name)


def reset_response(scope: Scope) -> None:
    """Close the connection of an HTTP request before the end of the body, so that the client sees an incomplete body.

    Under servers other than uvicorn, it is closed when the application returns.
    """
    response: ServerResponse | None = find_extension(scope, RESPONSE)
    if response is not None:
        response.reset()


def abort_response(scope: Scope) -> None:
    """As `reset_response`, but discard what the client has not read: it has gone, or does not read."""
    response: ServerResponse | None = find_extension(scope, RESPONSE)
    if response is not None:
        response.abort()
