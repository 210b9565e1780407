"""Keys and extensions in the ASGI scope of a request, by which server, middleware and endpoints share objects."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.types import Scope

from stream_server.auth.rate_limits import CallerSlot
from stream_server.hub.subscription import Subscription


def find_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with a name, which is given in lower case.

    Starlette's `Headers` decodes each header that it compares; this one compares bytes.
    """
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


SLOT_KEY = "stream_server.slot"
"""Key of the `CallerSlot` of a request."""

OBSERVED_HEAD_KEY = "stream_server.observed_head"
"""Set if a middleware must see the head of the response, so that it can't come from the cache."""

TICKET_KEY = "stream_server.ticket"
"""Key of the ticket that was in the query."""


def keep_slot(scope: Scope, subscription: Subscription) -> None:
    """Keep the slot of a request until the subscription is closed."""
    slot: CallerSlot | None = scope.get(SLOT_KEY)
    if slot is not None:
        slot.outlives_request = True
        subscription.on_close(slot.release)


SERVER_SEND_KEY = "stream_server.send"
"""Key of the server's own `send`, past all middlewares. They need to see the head of a stream only."""

CONNECTION = "stream_server.connection"
"""Extension with the connection of a request as a `writers.ServerConnection`, if the server is ours."""

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
