"""The Python client: follows a run over WebSocket, and takes up again what was cut."""

from stream_server.client.follow import (
    ClientError,
    ConnectionLost,
    Message,
    Refused,
    StreamClosed,
    follow,
)

__all__ = ["ClientError", "ConnectionLost", "Message", "Refused", "StreamClosed", "follow"]
