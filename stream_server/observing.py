"""What a hub is told of batches, and what it tells of streams to those who count. Pure."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from stream_server.close_codes import CloseCode


class Read(NamedTuple):
    """When a batch was read, and how old it was then."""

    lag: float
    """Seconds from the writing of its oldest row to the reading, by PostgreSQL's clock."""

    at: float
    """When it was read: `time.monotonic()`, which all processes of a host share."""


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
