"""What the hub reports to metrics."""

from __future__ import annotations

from typing import Protocol

from stream_server.domain.transition import Read
from stream_server.protocol.close_codes import CloseCode


class Observer(Protocol):
    """Who counts what happens to streams: `stream_server.metrics`."""

    def dispatched(self, read: Read) -> None:
        """A batch was handed on to all who watch its runs."""

    def joined(self, seconds: float, *, resumed: bool) -> None:
        """Somebody began to watch, or to watch again, and waited so long for it."""

    def closed(self, code: CloseCode) -> None:
        """A connection ended before its stream."""


class Connection(Protocol):
    """A connection that has many streams, or none just now."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End it, and its streams."""
