"""What the hub reports to metrics."""

from __future__ import annotations

from typing import Protocol

from stream_server.domain.transition import ReadTiming
from stream_server.protocol.close_codes import CloseCode


class HubObserver(Protocol):
    """Who counts what happens to streams: `stream_server.metrics`."""

    def record_dispatch(self, read: ReadTiming) -> None:
        """A batch was handed on to all who watch its runs."""

    def record_join(self, seconds: float, *, resumed: bool) -> None:
        """Somebody began to watch, or to watch again, and waited so long for it."""

    def record_close(self, code: CloseCode) -> None:
        """A connection ended before its stream."""


class MultiplexConnection(Protocol):
    """A connection that has many streams, or none just now."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End it, and its streams."""
