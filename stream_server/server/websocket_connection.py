"""Our subclass of uvicorn's WebSocket protocol (`client_connections` has the overview)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from typing_extensions import override
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from stream_server.http.delivery.asgi_scope import CONNECTION
from stream_server.http.endpoints.websocket import close_code_and_reason
from stream_server.protocol.frames import Close
from stream_server.server.flow_control import ResumeEvent
from stream_server.server.parse_turns import ParseTurns
from stream_server.server.placeholders import NULL_QUEUE, NULL_TIMER, NullQueue, NullTimer
from stream_server.server.stream_connection import DETACHED_SCOPE, StreamConnection, extensible

websocket_log = logging.getLogger("uvicorn.error.websocket")
"""Replaces uvicorn's logger, which logs URLs and headers of WebSockets at INFO and DEBUG: they may hold credentials."""

websocket_log.setLevel(logging.WARNING)

MAX_FRAMES_PER_SECOND = 1000
"""More frames close the connection. Each takes some 20 µs, however short it is."""


class WebSocketConnection(StreamConnection, WebSocketsSansIOProtocol):
    """A WebSocket connection that streams can write to directly."""

    _handshake: Request
    _raw_headers: Sequence[tuple[bytes, bytes]]

    parse_turns: ParseTurns

    _frames_since = 0.0
    _frame_count = 0
    """Frames that were received since `_frames_since`, by the clock of the event loop; within a second."""

    @property
    def is_full(self) -> bool:
        """Whether the write buffer is above its high-water mark."""
        # uvicorn clears and sets it in `pause_writing` and `resume_writing`.
        return not self.writable.is_set()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.writable = ResumeEvent()  # type: ignore[assignment]
        # Both loggers: uvicorn's own, and that of its `websockets.ServerProtocol`.
        self.logger = self.conn.logger = websocket_log

    def start_handshake(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Start the application for a GET request, whose head was parsed before."""
        self._raw_headers = headers
        # The library handles ASCII alone. The application gets the headers as they are.
        texts = [(name.decode("ascii"), value.decode("ascii", "backslashreplace")) for name, value in headers]
        self._handshake = Request(url.decode("ascii"), Headers(texts))
        # The library parses frames once it has parsed a head. This one stands for any.
        self.data_received(b"GET / HTTP/1.1\r\n\r\n")
        del self._handshake, self._raw_headers

    def detach(self) -> None:
        """Keep the connection open when the application returns, and free what uvicorn holds for the handshake."""
        # When the application returns, uvicorn closes the connection, unless this timer of the closing handshake runs.
        self.close_timer = NULL_TIMER
        # uvicorn puts messages for the application there.
        self.queue = NULL_QUEUE  # type: ignore[assignment]
        self.scope = DETACHED_SCOPE  # type: ignore[assignment]
        if self.read_paused:
            # uvicorn pauses reading after each message until the application has received it, which it will not.
            self.read_paused = False
            self.transport.resume_reading()
        # uvicorn's handshake, which is complete.
        del self.request, self.response

    async def close(self, closed: Close | None) -> None:
        """Send a close frame."""
        code, reason = close_code_and_reason(closed)
        with suppress(ClientDisconnected):
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    @override
    async def send(self, message: Any) -> None:  # uvicorn's types of ASGI messages are private
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # The application has refused the handshake with a response (ASGI extension `websocket.http.response`).
            # uvicorn would log "returned without completing handshake" and write a second response.
            self.handshake_complete = True
        elif message["type"] == "websocket.accept" and not self.handshake_complete:
            # uvicorn accepts nothing on a connection that is closing. The application returns before the connection
            # is lost, and uvicorn would log the same.
            self.handshake_complete = self.disconnected = True

    @override
    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if isinstance(self.close_timer, NullTimer):
            # From now on, uvicorn must see that no closing handshake has begun.
            self.close_timer = None

    @override
    def handle_connect(self, event: Request) -> None:
        super().handle_connect(self._handshake)
        # uvicorn sets no scope where the request is no handshake. The application starts in the next turn of the loop,
        # so it finds what is added here.
        if hasattr(self, "scope"):
            scope = extensible(self.scope)
            scope["headers"] = list(self._raw_headers)
            scope["extensions"][CONNECTION] = self

    @property
    def is_reading_paused(self) -> bool:
        """Whether uvicorn has paused reading, because the application has not received the last message."""
        return self.read_paused

    @override
    def data_received(self, data: bytes) -> None:
        self.parse_turns.receive(self, data)

    def parse(self, data: bytes) -> None:
        super().data_received(data)

    @override
    def handle_events(self) -> None:
        # uvicorn takes the events from the list.
        if self._has_too_many_frames(len(self.conn.events)):
            self.conn.fail(CloseCode.POLICY_VIOLATION, f"more than {MAX_FRAMES_PER_SECOND} frames in a second")
            self.handle_parser_exception()
        else:
            super().handle_events()

    def _has_too_many_frames(self, count: int) -> bool:
        now = self.loop.time()
        if now - self._frames_since >= 1.0:
            self._frames_since, self._frame_count = now, 0
        self._frame_count += count
        return self._frame_count > MAX_FRAMES_PER_SECOND

    @override
    def send_receive_event_to_app(self) -> None:
        # uvicorn calls this for each whole message, with its fragments in `frames`.
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            # uvicorn would log a traceback.
            self.conn.fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
            self.handle_parser_exception()
        elif self.writer is None or not isinstance(self.queue, NullQueue):
            super().send_receive_event_to_app()
        else:
            data, self.frames = b"".join(self.frames), []
            if self.writer.on_message is not None:
                self.writer.on_message(data)

    @override
    def handle_parser_exception(self) -> None:
        if not self.handshake_complete:
            self._abort_handshake()
            return
        super().handle_parser_exception()
        if self.writer is not None:
            # uvicorn has sent a close frame, after which nothing may be sent (RFC 6455 section 5.5.1).
            self.writer.on_client_gone()

    @override
    def handle_close(self, event: Frame) -> None:
        if not self.handshake_complete:
            self._abort_handshake()
            return
        super().handle_close(event)
        if self.writer is not None:
            # As after a parser exception.
            self.writer.on_client_gone()

    def _abort_handshake(self) -> None:
        """End a connection whose client has sent frames before the handshake was accepted."""
        # What uvicorn does when a connection is lost: nothing is sent any more, and no incomplete handshake is logged.
        self.handshake_complete = self.disconnected = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})
        self.transport.abort()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
