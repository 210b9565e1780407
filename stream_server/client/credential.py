"""Whether the server accepts the token of a call. Pure: the caller renews the token."""

from __future__ import annotations

from http import HTTPStatus

from stream_server.client.errors import TokenExpired
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close


class RenewalNeeded(Exception):
    """The server does not accept the token any more, and there is a way to get another one."""


class Credential:
    """The bearer token of a call. It is renewed when it has expired: once, until the server has accepted the new one.

    Args:
        token: The token; `None` for no authentication.
        can_renew: Whether there is a way to get another one.
    """

    def __init__(self, token: str | None, *, can_renew: bool) -> None:
        self.token = token
        self._can_renew = can_renew
        self._is_expired = False
        self._is_accepted = False
        """Whether the server has accepted this token, or one before it."""
        self._is_fresh = False
        """Whether it is the outcome of a renewal, and has not been accepted yet."""

    @property
    def needs_renewal(self) -> bool:
        """Whether the next attempt needs another token."""
        return self._is_expired and self._can_renew

    def replace(self, token: str | None) -> None:
        """Use another token from now on."""
        self.token = token
        self._is_expired, self._is_fresh = False, True

    def record_acceptance(self) -> None:
        """Record that the server has sent what the token permits."""
        self._is_accepted, self._is_fresh = True, False

    def record_close(self, close: Close) -> None:
        """Record whether a `close` is about the token.

        Raises:
            RenewalNeeded: It is, and the token can be renewed.
            TokenExpired: It is, the token was accepted until now, and it cannot be renewed.
        """
        if close.code == CloseCode.UNAUTHENTICATED:
            self.record_refusal(close.code, close.reason)
        # The next connection needs another token, and has time: the server closes before the token expires.
        self._is_expired = self._is_expired or close.code == CloseCode.AUTH_EXPIRING

    def record_refusal(self, code: int, reason: str) -> None:
        """Record that the server does not accept the token.

        Args:
            code: Close code or HTTP status.
            reason: The reason that the server gives.

        Raises:
            RenewalNeeded: The token can be renewed.
            TokenExpired: The token was accepted until now, and cannot be renewed.
        """
        if self._can_renew and not self._is_fresh:
            self._is_expired = True
            raise RenewalNeeded(reason)
        if self._is_accepted:
            raise TokenExpired(code, reason)

    def is_renewable_after(self, status: int, detail: str) -> bool:
        """Whether a request with this error status may succeed with another token.

        Raises:
            TokenExpired: The token was accepted before, and cannot be renewed.
        """
        if status != HTTPStatus.UNAUTHORIZED:
            return False
        try:
            self.record_refusal(status, detail)
        except RenewalNeeded:
            return True
        return False
