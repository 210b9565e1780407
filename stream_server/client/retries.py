"""When to try again. Pure: the caller passes the time, and waits."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from stream_server.client.errors import ConnectionLost, Refused, RequestTimeout, StreamClosed
from stream_server.protocol.backoff import FULL_JITTER, Backoff
from stream_server.protocol.frames import Close

DEFAULT_PATIENCE_SECONDS = 60.0
"""How long the client tries to reconnect, by default, before it raises `ConnectionLost`."""

BACKOFF_SECONDS = (0.25, 5.0)
"""First and longest delay between two attempts. The delay itself is random below that."""

LONGEST_PAUSE_SECONDS = 3600.0
"""Limit of a delay that the server requests, as in the TypeScript client."""

_TEMPORARY_CLIENT_ERRORS = frozenset({408, 425, 429})
_PERMANENT_SERVER_ERRORS = frozenset({501, 505})


def is_temporary(status: int) -> bool:
    """Whether a request with this status may succeed later: also after those that CDNs add, such as 522 and 530."""
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return status in _TEMPORARY_CLIENT_ERRORS
    return status not in _PERMANENT_SERVER_ERRORS


def origin_of(url: str) -> str:
    """Return scheme and host of a URL, without credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Retries:
    """Decides for how long to wait before the next attempt: the delay that the server requested, or a backoff.

    Args:
        origin: The server, for messages.
        patience: Seconds without a connection after which no further attempt is made.
        now: The time, in seconds of any clock.
    """

    def __init__(self, origin: str, patience: float, now: float) -> None:
        self._origin = origin
        self._patience = patience
        self._backoff = Backoff(*BACKOFF_SECONDS, jitter=FULL_JITTER)
        self._connected_at = now
        self._delay: float | None = None
        self._is_due = False
        """Whether the next attempt is made at once, whatever the patience."""

    def record_connection(self, now: float) -> None:
        """Restart the patience at the end of a connection."""
        self._connected_at = now

    def record_frame(self) -> None:
        """Start the backoff again.

        Not on connecting, because a server that accepts connections and drops them must not get ever more of them.
        """
        self._backoff.reset()

    def set_delay(self, seconds: float | None) -> None:
        """Wait that long before the next attempt, in place of the backoff; `None` for the backoff."""
        self._delay = seconds

    def permit_another(self) -> None:
        """Make the next attempt at once, also without patience: its request is another one than that which failed.

        The caller permits each kind of change once.
        """
        self._is_due = True

    def next_wait(self, error: Exception | None, now: float) -> float:
        """Return how many seconds to wait before the next attempt.

        Args:
            error: Why the last attempt failed. When the patience is exhausted, a `Refused` is raised itself.
            now: The time.

        Raises:
            Refused: The patience is exhausted, or ends before the server permits another attempt, and the server
                refused the last one.
            ConnectionLost: The patience is exhausted, or ends before the server permits another attempt.
        """
        if self._is_due:
            self._is_due = False
            return 0.0
        # Also with a delay of the server, so that the waits grow with each attempt.
        wait, delay = self._backoff.next_wait(), self._delay
        self._delay = None
        remaining = self._patience - (now - self._connected_at)
        if remaining > 0 and (delay is None or delay <= remaining):
            return min(wait, remaining) if delay is None else delay
        if isinstance(error, Refused):
            raise error
        kind = RequestTimeout if isinstance(error, TimeoutError) else ConnectionLost
        problem = f"no connection to {self._origin} for {self._patience:g} s"
        if remaining > 0:
            problem = f"{self._origin} permits no connection for {delay:g} s, longer than the patience"
        raise kind(f"{problem} ({error})") from error


def retry_delay_of_close(close: Close) -> float | None:
    """Return the delay that the server requests, in seconds.

    Raises:
        StreamClosed: The server does not accept further connections for this stream.
    """
    if not close.reconnect:
        raise StreamClosed(close.code, close.reason)
    # Limited before the division, because an integer in JSON may exceed the range of floats.
    return None if close.retry_ms is None else min(close.retry_ms, LONGEST_PAUSE_SECONDS * 1000) / 1000


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header; `None` if there is none, or a date."""
    if value is None or not (value.isascii() and value.isdecimal()):
        return None
    return min(float(value), LONGEST_PAUSE_SECONDS)
