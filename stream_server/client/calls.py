"""What the client does next with a call that has one response, without I/O.

`stream_state` does the same for streams.
"""

from __future__ import annotations

from dataclasses import replace

from stream_server.client.credential import Credential
from stream_server.client.errors import ConnectionLost, parse_refusal
from stream_server.client.requests import JSON, Request, Response, replace_key_by_run_id
from stream_server.client.retries import Retries, parse_retry_after


class CallState:
    """A request that is sent until there is a response.

    Args:
        request: The request.
        credential: The token.
        retries: When to try again.
    """

    def __init__(self, request: Request, credential: Credential, retries: Retries) -> None:
        self.request = replace(request, headers={"Accept": JSON, **request.headers})
        self.credential = credential
        self._retries = retries
        self._error: Exception | None = None

    def accept(self, response: Response) -> bool:
        """Whether the response is the outcome of the call; otherwise the client waits and tries again.

        Raises:
            Refused: The server rejects the request for good.
        """
        if response.is_success:
            return True
        self._error = refusal = parse_refusal(response.status, response.body)
        if (other := replace_key_by_run_id(self.request, refusal)) is not None:
            self.request = replace(other, headers={"Accept": JSON, **other.headers})
            self._retries.permit_another()
        elif self.credential.is_renewable_after(response.status, refusal.detail):
            self._retries.permit_another()
        elif not self.request.may_repeat_after(response.status):
            raise refusal
        else:
            self._retries.set_delay(parse_retry_after(response.headers.get("retry-after")))
        return False

    def record_loss(self, error: ConnectionLost) -> None:
        """Record that there was no response.

        Raises:
            ConnectionLost: The request may have arrived, and must not be repeated.
        """
        if error.may_have_arrived and not self.request.is_repeatable:
            raise error
        self._error = error

    def next_wait(self, now: float) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises:
            Refused: The patience is exhausted, and the server refused the last attempt.
            ConnectionLost: The patience is exhausted.
        """
        return self._retries.next_wait(self._error, now)
