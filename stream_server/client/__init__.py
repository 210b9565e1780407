"""Python client: triggers DAGs, streams their runs, waits for results. See docs/python-client.md.

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. `follow` streams a run over WebSocket.
"""

from stream_server.client.answers import answer_input
from stream_server.client.async_client import AsyncClient
from stream_server.client.async_run import AsyncRun
from stream_server.client.async_stream import AsyncFrameStream, AsyncRunStream
from stream_server.client.errors import (
    BadRequest,
    ClientError,
    Conflict,
    ConnectionLost,
    Forbidden,
    InvalidRequest,
    NoResult,
    NotFound,
    Refused,
    RequestTimeout,
    ResultTooLarge,
    ResultWithheld,
    RunFailed,
    ServerError,
    SeveralResults,
    StreamClosed,
    Throttled,
    TokenExpired,
    Unauthenticated,
    UnexpectedResponse,
    WaitTimeout,
)
from stream_server.client.outcomes import Outcome
from stream_server.client.run_view import RunView
from stream_server.client.sync_client import Client
from stream_server.client.sync_run import Run
from stream_server.client.sync_stream import FrameStream, RunStream
from stream_server.client.websocket_stream import Message, RenewToken, follow

__all__ = [
    "AsyncClient",
    "AsyncFrameStream",
    "AsyncRun",
    "AsyncRunStream",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionLost",
    "Forbidden",
    "FrameStream",
    "InvalidRequest",
    "Message",
    "NoResult",
    "NotFound",
    "Outcome",
    "Refused",
    "RenewToken",
    "RequestTimeout",
    "ResultTooLarge",
    "ResultWithheld",
    "Run",
    "RunFailed",
    "RunStream",
    "RunView",
    "ServerError",
    "SeveralResults",
    "StreamClosed",
    "Throttled",
    "TokenExpired",
    "Unauthenticated",
    "UnexpectedResponse",
    "WaitTimeout",
    "answer_input",
    "follow",
]
