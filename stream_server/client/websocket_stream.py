"""Follows a run over WebSocket, reconnects after a lost connection, and resumes the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from stream_server.client.credential import Credential, RenewalNeeded
from stream_server.client.cursors import ResumeState
from stream_server.client.errors import UnexpectedResponse, error_detail, parse_refusal
from stream_server.client.retries import (
    DEFAULT_PATIENCE_SECONDS,
    Retries,
    is_temporary,
    origin_of,
    parse_retry_after,
)
from stream_server.client.stream_state import record_received_frame
from stream_server.protocol.frames import AnyFrame, AuthExpiring, Close, End, Ping
from stream_server.protocol.wire import decode_frame

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Larger frames close the connection."""

RECEIVE_TIMEOUT_SECONDS = 60.0
"""A connection without a frame for that long counts as lost. The server sends a `ping` every 15 s by default."""

CLOSE_TIMEOUT_SECONDS = 1.0
"""How long to wait for the server when the iteration is left early."""

RenewToken = Callable[[], Awaitable[str]]
"""Returns a new bearer token."""


class Message(NamedTuple):
    """A frame, decoded and as the JSON text that the server sent."""

    frame: AnyFrame
    text: str


def stream_url(url: str, dag_id: str, run_id: str, results: Sequence[str] = (), until: str = "result") -> str:
    """Return the WebSocket URL of a run's stream on a server at `http://…`, `ws://…` or `host:port`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = f"{parts.path.rstrip('/')}/api/v2/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}/stream"
    query = urlencode([*(("result", task_id) for task_id in results), ("until", until)])
    return urlunsplit((scheme, parts.netloc, path, query, ""))


async def follow(
    url: str,
    dag_id: str,
    run_id: str,
    *,
    results: Sequence[str] = (),
    until: str = "result",
    token: str | None = None,
    renew_token: RenewToken | None = None,
    patience: float = DEFAULT_PATIENCE_SECONDS,
) -> AsyncIterator[Message]:
    """Yield the frames of a run, up to and including its `end`, without those about the connection (`ping`, `close`).

    After a lost connection the next frame is `resumed`, and the missed frames follow. If the server cannot replay them,
    the next frames are `reset` and a `snapshot` that replaces all earlier state. Frames that the server sends twice,
    because the connection broke within a batch, are yielded once.

    Args:
        url: Address of the server.
        dag_id: ID of the DAG.
        run_id: ID of the run.
        results: Tasks whose return values are the result; by default those marked in the DAG.
        until: `result` to end with the outcome, `run` to continue until the end of the run.
        token: Bearer token.
        renew_token: Called when the token has expired or is about to. An `OSError` of it counts as a lost connection;
            other exceptions end the iteration.
        patience: Seconds without a connection before `ConnectionLost`.

    Raises:
        Refused: The server rejected the request.
        StreamClosed: The server closed the stream for good; `TokenExpired` if only the token is at fault.
        ConnectionLost: There was no connection for `patience` seconds.
    """
    address = stream_url(url, dag_id, run_id, results, until)
    state = ResumeState()
    retries = Retries(origin_of(address), patience, time.monotonic())
    credential = Credential(token, can_renew=renew_token is not None)
    while True:
        error: Exception | None = None
        try:
            if renew_token is not None and credential.needs_renewal:
                credential.replace(await renew_token())
            async with _connect(_resuming_url(address, state.cursor), credential.token) as websocket:
                try:
                    async for message in _receive_messages(websocket):
                        record_received_frame(message.frame, credential, retries)
                        if not isinstance(message.frame, Close) and state.record_if_new(*message):
                            yield message
                        if isinstance(message.frame, End):
                            return
                finally:
                    retries.record_connection(time.monotonic())
        except RenewalNeeded as expired:
            error = expired
        except InvalidStatus as invalid:
            _record_response(invalid, credential, retries)
            error = invalid
        except (OSError, asyncio.TimeoutError, WebSocketException) as lost:
            error = lost
        await asyncio.sleep(retries.next_wait(error, time.monotonic()))


def _resuming_url(url: str, cursor: str | None) -> str:
    return url if cursor is None else f"{url}&{urlencode({'cursor': cursor})}"


def _record_response(invalid: InvalidStatus, credential: Credential, retries: Retries) -> None:
    """Record a failed handshake.

    Raises:
        Refused: The response rejects the request.
    """
    response = invalid.response
    if credential.is_renewable_after(response.status_code, error_detail(response.body)):
        retries.permit_another()
        return
    if not is_temporary(response.status_code):
        raise parse_refusal(response.status_code, response.body) from invalid
    retries.set_delay(parse_retry_after(response.headers.get("Retry-After")))


def _connect(address: str, token: str | None) -> connect:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # Without pings of the WebSocket protocol, because the server sends `ping` frames.
    return connect(
        address,
        additional_headers=headers,
        max_size=MAX_FRAME_BYTES,
        ping_interval=None,
        # The closing handshake waits behind frames that are not read any more.
        close_timeout=CLOSE_TIMEOUT_SECONDS,
        proxy=None,
    )


async def _receive_messages(websocket: ClientConnection) -> AsyncIterator[Message]:
    """Yield the frames of one connection. Raise when it ends."""
    while True:
        text = await asyncio.wait_for(websocket.recv(decode=True), RECEIVE_TIMEOUT_SECONDS)
        try:
            frame = decode_frame(text)
        except msgspec.ValidationError:
            # A newer server may send types of frames that this version does not have.
            continue
        except (msgspec.DecodeError, RecursionError) as error:
            raise UnexpectedResponse(f"a frame cannot be decoded ({error}): {text[:200]}") from error
        if not isinstance(frame, Ping | AuthExpiring):
            yield Message(frame, text)
