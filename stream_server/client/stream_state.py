"""What the client does next with a stream, without I/O: which request it sends, what it yields, when it is over.

The shells (`stream`, `async_stream`) send the requests, wait, and renew tokens:

    next_request → (response) record_response → receive … → record_loss or record_end_of_body → next_wait → next_request
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus

from stream_server.client.credential import Credential, RenewalNeeded
from stream_server.client.cursors import ResumeState
from stream_server.client.errors import (
    ClientError,
    ConnectionLost,
    StreamClosed,
    UnexpectedResponse,
    build_refusal,
    parse_refusal,
)
from stream_server.client.frames import StreamFrame, UnknownFrame, decode_frame
from stream_server.client.requests import (
    NDJSON,
    Request,
    Response,
    RunKey,
    WatchOptions,
    replace_key_by_run_id,
    stream_request,
)
from stream_server.client.retries import Retries, is_temporary, parse_retry_after, retry_delay_of_close
from stream_server.protocol.frame_members import Frame, RunFrame
from stream_server.protocol.frames import Ack, AuthExpiring, Close, End, Ping, Refusal, Reset, Snapshot

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line ends the stream. A reader must accept 1 MiB; larger ones exist where the server permits them."""

MESSAGE_TOO_BIG = 1009
"""Close code (RFC 6455 section 7.4.1)."""

CONNECTION_LOST = "connection_lost"
"""Reason of a `reset` that the client adds: the connection was lost before the first cursor."""


def record_received_frame(frame: Frame | UnknownFrame, credential: Credential, retries: Retries) -> None:
    """Record what a frame means for the token and for further attempts.

    Raises:
        RenewalNeeded: The token has expired, and can be renewed.
        Refused: The frame rejects the request.
        StreamClosed: The frame closes the stream for good.
    """
    if isinstance(frame, Close):
        credential.record_close(frame)
    elif isinstance(frame, Refusal):
        if frame.status == HTTPStatus.UNAUTHORIZED:
            credential.record_refusal(frame.status, frame.detail)
    else:
        credential.record_acceptance()
    retries.record_frame()
    if isinstance(frame, Refusal) and not is_temporary(frame.status):
        # The handshake of a client that has not authenticated always succeeds; the rejection is a frame.
        raise build_refusal(frame.status, frame.detail, {"type": frame.problem, "title": frame.title})
    if isinstance(frame, Close):
        retries.set_delay(retry_delay_of_close(frame))


class StreamState:
    """A stream over any number of connections.

    Args:
        opening: The request that opens the stream: a `GET`, or a `POST` that also triggers the run.
        options: Those of the stream of one run; `None` for many runs.
        credential: The token.
        retries: When to try again.
        cursor: Where to continue, if another stream has ended there.
    """

    def __init__(
        self,
        opening: Request,
        options: WatchOptions | None,
        credential: Credential,
        retries: Retries,
        cursor: str | None = None,
    ) -> None:
        self.credential = credential
        self.retries = retries
        self.is_over = False
        """Whether the stream is complete."""
        self.is_connection_over = False
        """Whether the server sends nothing more on this connection."""
        self.run: RunKey | None = None
        """The run, as soon as a frame of it has arrived."""

        self._opening = opening
        self.options = options
        self._resume = ResumeState(cursor)
        self._buffer = bytearray()
        self._error: Exception | None = None
        self._has_received = False
        """Whether a frame has arrived on this connection. Without one, the patience does not start again."""

        self._has_started = False
        self._was_interrupted = False
        """Whether a request that must not be repeated was interrupted."""

        self._has_yielded = False
        self._expects_snapshot = False
        """Whether a `reset` has announced the next snapshot."""

    @property
    def cursor(self) -> str | None:
        """Where the stream continues after the frames so far; `None` before the first cursor."""
        return self._resume.cursor

    @property
    def _current(self) -> Request:
        """The request that opens the stream, or resumes it as soon as the run is known."""
        if self.run is not None and self.options is not None:
            return stream_request(self.run, self.options)
        return self._opening

    def start(self, now: float) -> None:
        """Start the patience, if it has not been started before an interruption."""
        if not self._has_started:
            self._has_started = True
            self.retries.record_connection(now)

    def next_request(self) -> Request:
        """Return the request that opens or resumes the stream.

        Raises:
            ConnectionLost: The request was interrupted, and must not be repeated.
        """
        if self._was_interrupted and not self._current.is_repeatable:
            raise ConnectionLost("the caller has interrupted the request that triggers the run; it may have arrived")
        self._buffer.clear()
        self._error, self.is_connection_over, self._has_received = None, False, False
        request = self._current
        # A compressing proxy would delay frames.
        headers = {**request.headers, "Accept": NDJSON, "Accept-Encoding": "identity"}
        return replace(request, headers=headers).with_query(cursor=self.cursor)

    def record_response(self, response: Response) -> None:
        """Record the start of a response; its body, if the status is an error.

        Raises:
            Refused: The server rejects the request for good.
            UnexpectedResponse: The response is not a stream, for example a page of a proxy.
        """
        if response.status == HTTPStatus.NO_CONTENT:
            # The cursor is that of an `end`.
            self.is_over = self.is_connection_over = True
        elif not response.is_success:
            self._error = refusal = parse_refusal(response.status, response.body)
            if (other := replace_key_by_run_id(self._opening, refusal)) is not None:
                self._opening = other
                self.retries.permit_another()
            elif self.credential.is_renewable_after(response.status, refusal.detail):
                self.retries.permit_another()
            elif not self._current.may_repeat_after(response.status):
                raise refusal
            else:
                self.retries.set_delay(parse_retry_after(response.headers.get("retry-after")))
        elif not (media_type := response.headers.get("content-type", "")).startswith(NDJSON):
            raise UnexpectedResponse(
                f"not a stream of stream_server: its media type must be {NDJSON}, got {media_type!r}"
            )

    def receive(self, data: bytes) -> Iterator[StreamFrame]:
        """Yield the frames that a part of the body completes, without those about the connection.

        The cursor moves with each frame that is yielded.

        Raises:
            StreamClosed: The server closed the stream for good.
        """
        self._buffer += data
        if b"\n" not in data:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise StreamClosed(MESSAGE_TOO_BIG, f"the server sent a frame of more than {MAX_LINE_BYTES} bytes")
            return
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            if not self.is_connection_over and line.strip():
                yield from self._receive_line(bytes(line))

    def _receive_line(self, line: bytes) -> Iterator[StreamFrame]:
        frame = decode_frame(line)
        if frame is None:
            return
        self._has_received = True
        try:
            record_received_frame(frame, self.credential, self.retries)
        except RenewalNeeded as expired:
            self._error, self.is_connection_over = expired, True
            return
        is_new = self._resume.record_if_new(frame, line)
        if isinstance(frame, Close):
            self._error, self.is_connection_over = StreamClosed(frame.code, frame.reason), True
        if isinstance(frame, (Close, Ping, AuthExpiring, Ack, Refusal)) or not is_new:
            return
        if isinstance(frame, Snapshot) and self._has_yielded and not self._expects_snapshot:
            yield Reset(dag_id=frame.dag_id, run_id=frame.run_id, reason=CONNECTION_LOST)
        self._expects_snapshot = isinstance(frame, Reset)
        if self.run is None and isinstance(frame, RunFrame) and self.options is not None:
            self.run = RunKey(frame.dag_id, frame.run_id)
        self._has_yielded = True
        self.is_over = self.is_connection_over = isinstance(frame, End)
        yield frame

    def record_loss(self, error: ConnectionLost, now: float) -> None:
        """Record that a connection failed or broke.

        Raises:
            ConnectionLost: The request may have arrived, and must not be repeated.
        """
        self._record_end(now)
        if error.may_have_arrived and not self._current.is_repeatable:
            raise error
        self._error = error

    def record_interruption(self, now: float) -> None:
        """Record that the caller has cancelled the read of a frame, which closes the connection."""
        self._record_end(now)
        self._was_interrupted = True

    def record_end_of_body(self, now: float) -> None:
        """Record that a connection has ended.

        Raises:
            ClientError: The server has sent no frame of the run, and the request must not be repeated.
        """
        self._record_end(now)
        if not self.is_over and not self._current.is_repeatable:
            ended = ConnectionLost("the response has ended before the first frame of the run")
            raise self._error if isinstance(self._error, ClientError) else ended

    def _record_end(self, now: float) -> None:
        if self._has_received:
            self.retries.record_connection(now)

    def next_wait(self, now: float) -> float:
        """Return how many seconds to wait before the next request.

        Raises:
            ClientError: There was no connection for too long.
        """
        return self.retries.next_wait(self._error, now)
