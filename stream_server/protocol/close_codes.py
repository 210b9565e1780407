"""The one catalogue of why connections end before their streams do. Pure."""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Why a stream's connection ends before the stream does.

    The number is the WebSocket close code (RFC 6455 section 7.4.2, private use), and stands in the `close` frame of
    every transport. Below 4500 the client should connect again, from 4500 on it should not.
    """

    DRAINING = 4001
    """The server is shutting down."""

    SLOW = 4002
    """The client read more slowly than its run produced frames."""

    UNAVAILABLE = 4003
    """The journal can't be followed, or Airflow can't be asked, just now.

    Before the first frame only an `EventSource` is told so, which won't come back after a 503.
    """

    AGED = 4004
    """The connection has lived for as long as this server lets one live."""

    INTERNAL = 4005
    """The server lost its place; a new connection starts with a fresh snapshot."""

    AUTH_EXPIRING = 4006
    """The caller's token is about to expire; he goes on with another one."""

    ACCESS_CHANGED = 4007
    """The caller may see more or less of the run than when he came; a new connection tells him what he may."""

    THROTTLED = 4010
    """The caller has, or does, more than one may.

    Told to an `EventSource`, which gives up after a 429, and to who says on a WebSocket only in a message who he is.
    """

    REFUSED = 4500
    """What was asked for can't be had; the `error` frame before says why."""

    UNAUTHENTICATED = 4501
    """The caller did not say who he is, or his token has expired or was revoked."""

    FORBIDDEN = 4503
    """The caller may not read this any more."""

    IDLE = 4510
    """Nothing was subscribed to."""

    @property
    def should_reconnect(self) -> bool:
        """Whether the client should connect again."""
        return self < FIRST_FINAL_CODE


FIRST_FINAL_CODE = 4500
