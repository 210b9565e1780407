"""Python client: follows a run over WebSocket, reconnects, and resumes where it was cut off."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from stream_server.protocol.frames import (
    AnyFrame,
    AuthExpiring,
    Chunk,
    Close,
    End,
    Ping,
    Progress,
    Refusal,
    Reset,
    Snapshot,
)
from stream_server.protocol.wire import decode_frame

__all__ = ["ClientError", "ConnectionLost", "Message", "Refused", "StreamClosed", "follow"]

DEFAULT_PATIENCE_SECONDS = 60.0
"""How long to go on trying, by default, before a connection counts as lost for good."""

BACKOFF_SECONDS = (0.25, 5.0)
"""First and longest wait between two attempts; the wait itself is random below that."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Larger frames are refused."""

RECEIVE_TIMEOUT_SECONDS = 60.0
"""Without so much as a `ping` for that long, a connection is given up: the server sends one every 15 s by default."""

LONGEST_PAUSE_SECONDS = 3600.0
"""No server may ask a client to stay away for longer, as in the client in TypeScript."""

_TEMPORARY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class ClientError(Exception):
    """Base of what `follow` raises."""


class Refused(ClientError):
    """The server will not stream this: there is no such run, or the request is wrong, or not allowed."""

    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail
        super().__init__(f"{detail} (HTTP {status})")


class StreamClosed(ClientError):
    """The server closed the stream, and it makes no sense to come back."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"{reason} (code {code})")


class ConnectionLost(ClientError):
    """No connection could be made for too long."""


class Message(NamedTuple):
    """A frame, and its JSON text as it came."""

    frame: AnyFrame
    text: str


def stream_url(url: str, dag_id: str, run_id: str, results: Sequence[str] = (), until: str = "result") -> str:
    """Return the WebSocket address of a run's stream, given the address of a server (`http://…` or `ws://…`)."""
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
    patience: float = DEFAULT_PATIENCE_SECONDS,
) -> AsyncIterator[Message]:
    """Yield the frames of a run, up to and including its `end`; what is said of the connection alone is kept back.

    After a broken connection the next frame is `resumed`, and what was missed follows; or `reset`, where that can't be
    told, and a `snapshot`, which takes the place of all that was known. What came twice, since it broke in the
    middle of a batch, is kept back.

    Args:
        url: Address of the server.
        dag_id: The DAG.
        run_id: The run.
        results: Tasks whose return values are the answer; by default those that the DAG's author meant.
        until: `result` to end with the outcome, `run` to go on to the end of the run.
        token: Bearer token.
        patience: Seconds to go on trying after the last sign of life.

    Raises:
        Refused: The server will not stream this.
        StreamClosed: The server closed the stream for good.
        ConnectionLost: No connection could be made for `patience` seconds.
    """
    address = stream_url(url, dag_id, run_id, results, until)
    alive = time.monotonic()
    wait, longest = BACKOFF_SECONDS
    place = _ResumeState()
    while True:
        pause: float | None = None
        trouble: BaseException | None = None
        try:
            async with _connect(place.resume_url(address), token) as websocket:
                try:
                    async for message in _receive_messages(websocket):
                        # Only now: who accepts connections and drops them at once must not be asked ever faster.
                        wait = BACKOFF_SECONDS[0]
                        _raise_if_refused(message.frame)
                        if isinstance(message.frame, Close):
                            pause = _retry_delay_of_close(message.frame)
                            continue
                        if place.record_if_new(message):
                            yield message
                        if isinstance(message.frame, End):
                            return
                finally:
                    alive = time.monotonic()
        except InvalidStatus as error:
            pause = _retry_delay_of_response(error)
            trouble = error
        except (OSError, asyncio.TimeoutError, WebSocketException) as error:
            trouble = error
        if time.monotonic() - alive > patience:
            raise ConnectionLost(
                f"No connection to {_origin_without_secrets(address)} for {patience:g} s ({trouble})"
            ) from trouble
        await asyncio.sleep(random.uniform(0, wait) if pause is None else pause)  # noqa: S311 # not for secrets
        wait = min(wait * 2, longest)


class _FrameCursor(msgspec.Struct):
    """As much of a frame as says where it stands."""

    cursor: str | None = None


class _ResumeState:
    """How far a client has come in a stream."""

    def __init__(self) -> None:
        self._cursor: str | None = None
        self._seen_since_cursor: set[tuple[object, ...]] = set()
        """Frames that came after the cursor: they come again if the connection breaks now."""

    def resume_url(self, address: str) -> str:
        """Return the address at which the stream goes on."""
        return address if self._cursor is None else f"{address}&{urlencode({'cursor': self._cursor})}"

    def record_if_new(self, message: Message) -> bool:
        """Note that a frame has come; false if it had come before."""
        frame = message.frame
        mark = _identity_of(frame)
        known = mark in self._seen_since_cursor
        if mark is not None:
            self._seen_since_cursor.add(mark)
        if isinstance(frame, (Reset, Snapshot)):
            self._seen_since_cursor.clear()
        cursor = msgspec.json.decode(message.text, type=_FrameCursor).cursor
        if cursor is not None:
            self._cursor = cursor
            self._seen_since_cursor.clear()
        return not known


def _identity_of(frame: AnyFrame) -> tuple[object, ...] | None:
    """Return what no other frame of a stream has in common with this one; `None` where it may come again."""
    if isinstance(frame, (Chunk, Progress)):
        # A row may hold several of them, and a try may be written down twice.
        return frame.task_id, frame.map_index, frame.try_number, frame.index
    seq = getattr(frame, "seq", None)
    return None if seq is None else (type(frame), seq)


def _connect(address: str, token: str | None) -> connect:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # Our own frames show that the server is alive, so that no pings of the protocol are needed.
    return connect(address, additional_headers=headers, max_size=MAX_FRAME_BYTES, ping_interval=None, proxy=None)


async def _receive_messages(websocket: ClientConnection) -> AsyncIterator[Message]:
    """Yield the frames of one connection, until it breaks."""
    while True:
        text = await asyncio.wait_for(websocket.recv(decode=True), RECEIVE_TIMEOUT_SECONDS)
        try:
            frame = decode_frame(text)
        except msgspec.ValidationError:
            # A type that this version does not know; newer servers may say more than we understand.
            continue
        if not isinstance(frame, Ping | AuthExpiring):
            yield Message(frame, text)


def _raise_if_refused(frame: AnyFrame) -> None:
    """Take a refusal for one, although the handshake was accepted: of who did not say who he is, it always is.

    Raises:
        Refused: The answer will be the same next time.
    """
    if isinstance(frame, Refusal) and frame.status not in _TEMPORARY_STATUSES:
        raise Refused(frame.status, frame.detail)


def _retry_delay_of_close(close: Close) -> float | None:
    """Return how long the server asks to stay away, in seconds.

    Raises:
        StreamClosed: It makes no sense to come back.
    """
    if not close.reconnect:
        raise StreamClosed(close.code, close.reason)
    # Compared before it is divided: an integer in JSON may be larger than any float.
    return None if close.retry_ms is None else min(close.retry_ms, LONGEST_PAUSE_SECONDS * 1000) / 1000


def _retry_delay_of_response(error: InvalidStatus) -> float | None:
    """Return how long the server asks to stay away, in seconds.

    Raises:
        Refused: The answer will be the same next time.
    """
    response = error.response
    if response.status_code not in _TEMPORARY_STATUSES:
        raise Refused(response.status_code, _error_detail(response.body)) from error
    retry_after = response.headers.get("Retry-After", "")
    if not (retry_after.isascii() and retry_after.isdecimal()):
        return None
    return min(float(retry_after), LONGEST_PAUSE_SECONDS)


def _error_detail(body: bytes | bytearray | None) -> str:
    """Return what a problem+json body says, or the body itself."""
    text = (body or b"").decode(errors="replace")
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text[:500] or "The server gave no reason"


def _origin_without_secrets(address: str) -> str:
    """Return where a stream is, without what is secret in its address."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
