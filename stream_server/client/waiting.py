"""Waiting for an outcome with one request after another, without I/O."""

from __future__ import annotations

import math
from typing import NamedTuple

from stream_server.client.errors import ConnectionLost, Refused, WaitTimeout
from stream_server.client.outcomes import Outcome
from stream_server.client.requests import Request, Response, RunKey, WatchOptions, result_request
from stream_server.client.retries import is_temporary, parse_retry_after

DEFAULT_TIMEOUT_SECONDS = 60.0
"""How long a request may take that does not wait for a run."""

POLL_SECONDS = 20.0
"""How long the server waits in one request; many proxies end requests after 30 s."""

RESPONSE_SECONDS = 15.0
"""How much longer a response may take: the server reads values that exist then for up to 5 s."""


class Poll(NamedTuple):
    request: Request
    read_timeout: float
    patience: float
    """Seconds without a response after which the call fails."""


class WaitState:
    """The requests of one `wait`.

    Args:
        key: The run.
        options: Which outcome.
        timeout: Seconds to wait; `None` for no limit.
        now: The time.
    """

    def __init__(self, key: RunKey, options: WatchOptions, timeout: float | None, now: float) -> None:
        self._key = key
        self._options = options
        self._timeout = math.inf if timeout is None else timeout
        self._began_at = self._sent_at = now
        self._poll_seconds = 0.0
        self._run_state: str | None = None

    def next_poll(self, now: float) -> Poll:
        """Return the next request."""
        remaining = max(self._timeout - (now - self._began_at), 0.0)
        self._sent_at, self._poll_seconds = now, min(POLL_SECONDS, remaining)
        request = result_request(self._key, self._options, self._poll_seconds)
        return Poll(request, self._poll_seconds + RESPONSE_SECONDS, remaining)

    def record(self, outcome: Outcome, response: Response, now: float) -> float | None:
        """Return how many seconds to wait before the next request; `None` if the outcome is there.

        Raises:
            WaitTimeout: The outcome was not known in time.
        """
        if outcome.outcome != "pending":
            return None
        self._run_state = outcome.state
        remaining = self._timeout - (now - self._began_at)
        if remaining <= 0:
            raise WaitTimeout(*self._key, outcome.state, self._timeout)
        # A server that does not wait must not be asked at once again; one that has waited must, to lose no time.
        has_waited = now - self._sent_at >= self._poll_seconds / 2
        pause = 0.0 if has_waited else parse_retry_after(response.headers.get("retry-after")) or 1.0
        return min(pause, remaining)

    def timeout_after(self, error: Refused | ConnectionLost, poll: Poll, patience: float) -> WaitTimeout | None:
        """Return the exception for a request without an answer, if it is the timeout that ended the attempts.

        Args:
            error: Why there is no answer.
            poll: The request.
            patience: Seconds without a connection after which a call without a timeout fails.
        """
        is_permanent = isinstance(error, Refused) and not is_temporary(error.status)
        if is_permanent or poll.patience >= patience:
            return None
        return WaitTimeout(*self._key, self._run_state, self._timeout, error)
