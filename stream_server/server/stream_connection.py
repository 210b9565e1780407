"""What HTTP connections and WebSockets have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from stream_server.http.delivery.asgi_scope import CONNECTION
from stream_server.http.delivery.writers import DirectWriter
from stream_server.server.parse_turns import Unparsed

DETACHED_SCOPE: dict[str, Any] = {"method": "GET"}
"""Replaces the scope of a request whose connection was detached, which is freed then. uvicorn reads the method."""


class StreamConnection(asyncio.Protocol):
    """A connection that streams can write to directly: it notifies them. Comes before uvicorn's class.

    uvicorn's class has the scope of the last request as attribute `scope`: none, or `None`, before the first.
    """

    writer: DirectWriter | None = None
    """The stream that has detached the connection."""

    unparsed: Unparsed | None = None
    """What was received and waits to be parsed (`parse_turns`)."""

    release_address: Callable[[], None] | None = None
    """Stops to count the connection for the address of the client (`address_slots`)."""

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self.writer is not None:
            self.writer.is_blocked = True

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self.writer is not None:
            self.writer.unblock()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._break_cycle()
        super().connection_lost(exc)
        if self.release_address is not None:
            self.release_address()
        if self.writer is not None:
            self.writer.on_client_gone()

    def _break_cycle(self) -> None:
        """Remove the connection from the scope, which it refers to: both are freed at once, without the collector."""
        extensible(getattr(self, "scope", None) or {}).get("extensions", {}).pop(CONNECTION, None)


def extensible(scope: object) -> dict[str, Any]:
    """Return a scope as a plain dictionary: uvicorn's types allow no keys of our own."""
    assert isinstance(scope, dict), "an ASGI scope is a dictionary"
    return scope
