"""What the hub reports to metrics, and what it needs of a multiplexed connection."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from stream_server.domain.transition import ReadTiming
from stream_server.protocol.close_codes import CloseCode


class HubStatistics(NamedTuple):
    """What is watched, and what is queued for slow clients."""

    runs: int
    subscriptions: int
    queued_frames: int
    queued_bytes: int


class HubObserver(Protocol):
    """Counts what happens to streams. Implemented by `stream_server.server.metrics`."""

    def record_dispatch(self, read: ReadTiming) -> None:
        """Count a batch that was pushed to its subscriptions."""

    def record_join(self, seconds: float, *, resumed: bool) -> None:
        """Count a new subscription, which took so many seconds."""

    def record_close(self, code: CloseCode) -> None:
        """Count a connection that ended before its stream."""


class MultiplexConnection(Protocol):
    """A connection with many streams, or with none at the moment."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection and its streams."""
