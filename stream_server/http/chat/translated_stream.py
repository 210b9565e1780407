"""A stream in the form of another protocol, made of the same frames as all streams."""

from __future__ import annotations

from contextlib import closing
from typing import Protocol

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from stream_server.http.chat.open_requests import drop_closed_requests
from stream_server.http.chat.run import AnsweringRun
from stream_server.http.delivery.asgi_scope import abort_response
from stream_server.http.delivery.due_frames import DueFrames, watch_due_frames
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.streaming_body import HEADERS
from stream_server.protocol.frames import AnyFrame

MEDIA_TYPE = "text/event-stream"

KEEP_ALIVE = b": ping\n\n"
"""A comment (WHATWG HTML 9.2.6), which clients skip."""


class Translator(Protocol):
    """Translates the frames of one stream. It may keep what the stream needs, and nothing longer than that."""

    is_complete: bool
    """Whether the response needs no more frames, although the run may continue."""

    def start(self) -> bytes:
        """Return what comes before the first frame. It is sent at once."""

    def translate(self, frame: AnyFrame) -> bytes:
        """Return the translation of a frame; empty if it has none."""


class TranslatedStream(Response):
    """Server-sent events of a translator.

    Args:
        run: The run. Its subscription is closed at the end.
        translator: The translator.
        scheduler: For intervals and counters.
        transport: One of `scheduler.TRANSPORTS`.
        headers: Further headers.
        has_open_requests_only: Whether requests for human input that are not open any more are left out, with which
            the response would wait for an answer.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        run: AnsweringRun,
        translator: Translator,
        scheduler: WriteScheduler,
        transport: str,
        headers: dict[str, str] | None = None,
        *,
        has_open_requests_only: bool = False,
    ) -> None:
        super().__init__(headers={**HEADERS, **run.headers, **(headers or {})})
        del self.headers["content-length"]
        self._run, self._translator, self._scheduler = run, translator, scheduler
        self._has_open_requests_only = has_open_requests_only
        self._counters = scheduler.counters[transport]

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        subscription, on_gone = self._run.subscription, self._run.on_gone
        with closing(subscription):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            with self._counters.count_waiting(), watch_due_frames(subscription, receive) as frames:
                # A client that does not read what is due at the end must not hold its connection for ever.
                is_read = await self._write(self._translator.start(), send) and await self._send_frames(frames, send)
                is_client_there = is_read and not frames.is_client_gone
            if is_client_there:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                abort_response(scope)
        if on_gone is not None and not (subscription.is_complete or self._translator.is_complete):
            on_gone()
        if self._run.on_responded is not None:
            await self._run.on_responded()

    async def _send_frames(self, frames: DueFrames, send: Send) -> bool:
        """Send all frames. Return whether the client has read them."""
        while not (frames.have_ended or self._translator.is_complete):
            data = await self._take(frames, self._scheduler.ping_interval)
            if data and not await self._write(data, send):
                return False
        return True

    async def _take(self, frames: DueFrames, seconds: float) -> bytes:
        """Return the translation of what is due next, or a comment if there is nothing in so many seconds."""
        wires = await frames.take(seconds)
        self._counters.frames += len(wires or ())
        if wires is None:
            return KEEP_ALIVE
        due = [wire.frame for wire in wires]
        due = drop_closed_requests(due) if self._has_open_requests_only else due
        return b"".join([self._translator.translate(frame) for frame in due])

    async def _write(self, data: bytes, send: Send) -> bool:
        with anyio.move_on_after(self._scheduler.close_timeout) as timeout:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._counters.bytes += len(data)
        return not timeout.cancelled_caught
