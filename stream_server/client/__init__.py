"""Python client: follows a run over WebSocket, reconnects after a lost connection, and resumes the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from stream_server.client.answers import answer_input
from stream_server.client.errors import ClientError, ConnectionLost, Refused, StreamClosed, TokenExpired, error_detail
from stream_server.protocol.backoff import FULL_JITTER, Backoff
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import AnyFrame, AuthExpiring, Close, End, Ping, Refusal, Reset, Snapshot
from stream_server.protocol.output_frames import OutputFrame
from stream_server.protocol.wire import decode_frame

__all__ = [
    "ClientError",
    "ConnectionLost",
    "Message",
    "Refused",
    "StreamClosed",
    "TokenExpired",
    "answer_input",
    "follow",
]

DEFAULT_PATIENCE_SECONDS = 60.0
"""How long `follow` tries to reconnect, by default, before it raises `ConnectionLost`."""

BACKOFF_SECONDS = (0.25, 5.0)
"""First and longest delay between two attempts. The delay itself is random below that."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Larger frames close the connection."""

RECEIVE_TIMEOUT_SECONDS = 60.0
"""A connection without a frame for that long counts as lost. The server sends a `ping` every 15 s by default."""

CLOSE_TIMEOUT_SECONDS = 1.0
"""How long to wait for the server when the iteration is left early."""

LONGEST_PAUSE_SECONDS = 3600.0
"""Limit of a delay that the server requests, as in the TypeScript client."""

RenewToken = Callable[[], Awaitable[str]]
"""Returns a new bearer token."""

_TEMPORARY_CLIENT_ERRORS = frozenset({408, 425, 429})
_PERMANENT_SERVER_ERRORS = frozenset({501, 505})


def is_temporary(status: int) -> bool:
    """Whether a request with this status may succeed later: also after those that CDNs add, such as 522 and 530."""
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return status in _TEMPORARY_CLIENT_ERRORS
    return status not in _PERMANENT_SERVER_ERRORS


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
    state = _ResumeState(stream_url(url, dag_id, run_id, results, until))
    retries = _Retries(state.origin, patience)
    credential = _Credential(token, renew_token)
    while True:
        error: Exception | None = None
        try:
            async with _connect(state.url, await credential.get_token()) as websocket:
                try:
                    async for message in _receive_messages(websocket):
                        credential.record_frame(message.frame)
                        retries.record_frame(message.frame)
                        if not isinstance(message.frame, Close) and state.record_if_new(message):
                            yield message
                        if isinstance(message.frame, End):
                            return
                finally:
                    retries.record_connection()
        except _RenewalNeeded as expired:
            error = expired
        except InvalidStatus as invalid:
            if not credential.expires_with(invalid):
                retries.record_response(invalid)
            error = invalid
        except (OSError, asyncio.TimeoutError, WebSocketException) as lost:
            error = lost
        await retries.wait(error)


class _RenewalNeeded(Exception):
    """The server does not accept the token any more, and there is a way to get another one."""


class _Credential:
    """The bearer token, which is renewed when it has expired: once, until the server has accepted the new one."""

    def __init__(self, token: str | None, renew_token: RenewToken | None) -> None:
        self._token = token
        self._renew_token = renew_token
        self._is_expired = False
        self._is_accepted = False
        """Whether a frame of the stream has arrived with this token."""
        self._is_fresh = False
        """Whether it is the outcome of a renewal, and has not been accepted yet."""

    async def get_token(self) -> str | None:
        """Return the token, or a new one if it has expired."""
        if self._is_expired and self._renew_token is not None:
            self._token = await self._renew_token()
            self._is_expired, self._is_fresh = False, True
        return self._token

    def record_frame(self, frame: AnyFrame) -> None:
        """Record whether the server accepts the token.

        Raises:
            _RenewalNeeded: It does not, and the token can be renewed.
            TokenExpired: It did until now, and the token cannot be renewed.
        """
        if isinstance(frame, Refusal) and frame.status == HTTPStatus.UNAUTHORIZED:
            self._handle_refusal(frame.status, frame.detail)
        elif isinstance(frame, Close):
            if frame.code == CloseCode.UNAUTHENTICATED:
                self._handle_refusal(frame.code, frame.reason)
            # The next connection needs another token, and has time: the server closes before the token expires.
            self._is_expired = self._is_expired or frame.code == CloseCode.AUTH_EXPIRING
        elif not isinstance(frame, Refusal):
            self._is_accepted, self._is_fresh = True, False

    def expires_with(self, error: InvalidStatus) -> bool:
        """Whether a failed handshake means that the token has to be renewed.

        Raises:
            TokenExpired: The token was accepted before, and cannot be renewed.
        """
        if error.response.status_code != HTTPStatus.UNAUTHORIZED:
            return False
        try:
            self._handle_refusal(HTTPStatus.UNAUTHORIZED, error_detail(error.response.body))
        except _RenewalNeeded:
            return True
        return False

    def _handle_refusal(self, code: int, reason: str) -> None:
        if self._renew_token is not None and not self._is_fresh:
            self._is_expired = True
            raise _RenewalNeeded
        if self._is_accepted:
            raise TokenExpired(code, reason)


class _Retries:
    """Decides when to reconnect, and for how long: after the delay that the server requested, or after a backoff."""

    def __init__(self, origin: str, patience: float) -> None:
        self._origin = origin
        self._patience = patience
        self._backoff = Backoff(*BACKOFF_SECONDS, jitter=FULL_JITTER)
        self._connected_at = time.monotonic()
        self._delay: float | None = None

    def record_connection(self) -> None:
        """Restart the patience at the end of a connection."""
        self._connected_at = time.monotonic()

    def record_frame(self, frame: AnyFrame) -> None:
        """Reset the backoff, and keep the delay in a `close`.

        Raises:
            Refused: The frame rejects the request.
            StreamClosed: The frame closes the stream for good.
        """
        # Not on connecting, because a server that accepts connections and drops them must not get ever more of them.
        self._backoff.reset()
        if isinstance(frame, Refusal) and not is_temporary(frame.status):
            # The handshake of a client that has not authenticated always succeeds; the rejection is a frame.
            raise Refused(frame.status, frame.detail)
        if isinstance(frame, Close):
            self._delay = _retry_delay_of_close(frame)

    def record_response(self, error: InvalidStatus) -> None:
        """Keep the delay in `Retry-After` of a failed handshake.

        Raises:
            Refused: The response rejects the request.
        """
        self._delay = _retry_delay_of_response(error)

    async def wait(self, error: Exception | None) -> None:
        """Wait before the next attempt.

        Raises:
            ConnectionLost: The patience is exhausted.
        """
        if time.monotonic() - self._connected_at > self._patience:
            raise ConnectionLost(f"no connection to {self._origin} for {self._patience:g} s ({error})") from error
        # Also with a delay of the server, so that the waits grow with each attempt.
        wait = self._backoff.next_wait()
        await asyncio.sleep(wait if self._delay is None else self._delay)
        self._delay = None


class _FrameCursor(msgspec.Struct):
    """The cursor of a frame, without the rest of it."""

    cursor: str | None = None


class _ResumeState:
    """The last cursor of a stream, and the frames after it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._cursor: str | None = None
        # Frames after the cursor: the server sends them again if the connection is lost now.
        self._seen_since_cursor: set[tuple[object, ...]] = set()

    @property
    def origin(self) -> str:
        """Scheme and host, without credentials."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def url(self) -> str:
        """URL that resumes the stream after the last cursor."""
        return self._url if self._cursor is None else f"{self._url}&{urlencode({'cursor': self._cursor})}"

    def record_if_new(self, message: Message) -> bool:
        """Record a frame. Return false if it is a repetition."""
        frame = message.frame
        identity = _identity_of(frame)
        is_new = identity not in self._seen_since_cursor
        if identity is not None:
            self._seen_since_cursor.add(identity)
        if isinstance(frame, (Reset, Snapshot)):
            self._seen_since_cursor.clear()
        cursor = msgspec.json.decode(message.text, type=_FrameCursor).cursor
        if cursor is not None:
            self._cursor = cursor
            self._seen_since_cursor.clear()
        return is_new


def _identity_of(frame: AnyFrame) -> tuple[object, ...] | None:
    """Return a key that identifies a frame in its stream; `None` for frames that may repeat."""
    if isinstance(frame, OutputFrame):
        # Not by `seq`: a row of the journal may contain several, and the output of a try may be recorded twice.
        return frame.task_id, frame.map_index, frame.iteration, frame.try_number, frame.index
    seq = getattr(frame, "seq", None)
    return None if seq is None else (type(frame), seq)


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
        if not isinstance(frame, Ping | AuthExpiring):
            yield Message(frame, text)


def _retry_delay_of_close(close: Close) -> float | None:
    """Return the delay that the server requests, in seconds.

    Raises:
        StreamClosed: The server does not accept further connections for this stream.
    """
    if not close.reconnect:
        raise StreamClosed(close.code, close.reason)
    # Limited before the division, because an integer in JSON may exceed the range of floats.
    return None if close.retry_ms is None else min(close.retry_ms, LONGEST_PAUSE_SECONDS * 1000) / 1000


def _retry_delay_of_response(error: InvalidStatus) -> float | None:
    """Return the delay that the server requests, in seconds.

    Raises:
        Refused: The status is not temporary.
    """
    response = error.response
    if not is_temporary(response.status_code):
        raise Refused(response.status_code, error_detail(response.body)) from error
    retry_after = response.headers.get("Retry-After", "")
    if not (retry_after.isascii() and retry_after.isdecimal()):
        return None
    return min(float(retry_after), LONGEST_PAUSE_SECONDS)
