"""Close codes: why a connection ends before its stream is complete."""

from __future__ import annotations

from enum import IntEnum

from typing_extensions import Self

FIRST_FINAL_CODE = 4500


class CloseCode(IntEnum):
    """Why a connection ends before its stream is complete.

    The number is the close code of a WebSocket (RFC 6455 section 7.4.2, private use) and the `code` of the `close`
    frame on every transport. Below `FIRST_FINAL_CODE` the client should reconnect, from there on it should not.
    """

    description: str
    """Published in the schema of the `close` frame."""

    def __new__(cls, code: int, description: str = "") -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.description = description
        return member

    DRAINING = 4001, "The server is shutting down."
    SLOW = 4002, "The client reads more slowly than its stream grows."
    UNAVAILABLE = (
        4003,
        (
            "The journal cannot be read, or Airflow cannot be asked, at the moment. Before the first frame only an"
            " `EventSource` gets this code, because it does not reconnect after a 503."
        ),
    )
    AGED = 4004, "The connection has reached the maximum age that the server allows."
    INTERNAL = 4005, "The server lost its position; a new connection starts with a fresh snapshot."
    AUTH_EXPIRING = 4006, "The caller's token expires soon; the client should reconnect with a new one."
    ACCESS_CHANGED = (
        4007,
        "The caller may see more or less than when the stream started; a new connection shows what the caller may see.",
    )
    THROTTLED = (
        4010,
        (
            "The caller has exceeded a limit per caller. Only an `EventSource`, which gives up after a 429, and a"
            " WebSocket whose caller authenticates with a message get this code."
        ),
    )
    REFUSED = 4500, "The request was refused; the preceding `error` frame has the reason."
    UNAUTHENTICATED = 4501, "The caller did not authenticate, or the token expired or was revoked."
    FORBIDDEN = 4503, "The caller may no longer read this."
    IDLE = 4510, "The client had no subscription for too long."

    @property
    def should_reconnect(self) -> bool:
        return self < FIRST_FINAL_CODE
