"""Newline-delimited JSON: one line for each frame, with its cursor as the last member."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.streaming_body import HEADERS, send_stream
from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import Wire

MEDIA_TYPE = "application/x-ndjson"


def encode_line(wire: Wire) -> bytes:
    return wire.text.encode() + b"\n"


class LineStream(Response):
    media_type = MEDIA_TYPE

    def __init__(
        self,
        subscription: Subscription,
        scheduler: WriteScheduler,
        headers: Mapping[str, str] | None = None,
        *,
        on_gone: Callable[[], None] | None = None,
        ping_interval: float | None = None,
    ) -> None:
        super().__init__(headers={**HEADERS, **(headers or {})})
        # Starlette sets it to 0; the length of a stream is unknown.
        del self.headers["content-length"]
        self._subscription, self._scheduler, self._on_gone = subscription, scheduler, on_gone
        self._ping_interval = ping_interval

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_stream(
            self._subscription,
            self,
            scope,
            receive,
            send,
            scheduler=self._scheduler,
            framing=encode_line,
            transport="ndjson",
            on_gone=self._on_gone,
            ping_interval=self._ping_interval,
        )
