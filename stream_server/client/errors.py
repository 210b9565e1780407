"""What the client raises."""

from __future__ import annotations

import json


class ClientError(Exception):
    """Base class of the exceptions of the client."""


class Refused(ClientError):
    """The server rejected the request: the run does not exist, the request is invalid, or it is not allowed."""

    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail
        super().__init__(f"{detail} (HTTP {status})")


class StreamClosed(ClientError):
    """The server closed the stream for good; a further attempt would fail, too."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"{reason} (code {code})")


class TokenExpired(StreamClosed):
    """The token has expired or was revoked while the stream was open. The run continues."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, f"the token has expired or was revoked: {reason}")


class ConnectionLost(ClientError):
    """No connection for too long."""


def error_detail(body: bytes | bytearray | None) -> str:
    """Return the detail of a problem+json body, or the start of any other body."""
    text = (body or b"").decode(errors="replace")
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text[:500] or "the server gave no reason"
