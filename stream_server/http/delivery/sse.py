"""Server-sent events (WHATWG HTML Living Standard, section 9.2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.streaming_body import HEADERS, encode_headers, send_stream
from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import Wire

MEDIA_TYPE = "text/event-stream"

RETRY_MS = (1000, 3000)
"""Bounds of the random time after which an `EventSource` reconnects."""


def encode_event(wire: Wire) -> bytes:
    """Return a frame as an event, with its cursor as `id`."""
    # As sse-starlette encodes it, which also splits lines; neither the JSON nor the rest has a line end.
    if wire.token is None:
        return b"event: %b\ndata: %b\n\n" % (wire.type.encode(), wire.json)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (str(wire.token).encode(), wire.type.encode(), wire.json)


class EventStream(Response):
    """Frames as events.

    Headers and framing are those of sse-starlette, without its task group, queue and async generator for each client.
    """

    def __init__(
        self,
        subscription: Subscription,
        scheduler: WriteScheduler,
        headers: Mapping[str, str] | None = None,
        *,
        on_gone: Callable[[], None] | None = None,
        ping_interval: float | None = None,
        retry_ms: int = 0,
    ) -> None:
        self.status_code = 200
        self.raw_headers = [*_stream_headers(), *encode_headers(headers or {})]
        self._subscription, self._scheduler, self._on_gone = subscription, scheduler, on_gone
        self._ping_interval = ping_interval
        self._retry_ms = retry_ms

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = _random_retry(self._retry_ms)
        await send_stream(
            self._subscription,
            self,
            scope,
            receive,
            send,
            scheduler=self._scheduler,
            framing=encode_event,
            transport="sse",
            first=first,
            on_gone=self._on_gone,
            ping_interval=self._ping_interval,
        )


def _random_retry(least_ms: int) -> bytes:
    """Return a random field `retry` (WHATWG HTML 9.2.6), so that clients don't reconnect all at once."""
    return _encode_retry(least_ms + int(random.uniform(*RETRY_MS)))  # noqa: S311 # not for secrets


@cache
def _stream_headers() -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of each stream: those of sse-starlette, and ours."""
    return EventSourceResponse(iter(()), headers=HEADERS).raw_headers


@cache
def _encode_retry(milliseconds: int) -> bytes:
    return ServerSentEvent(retry=milliseconds, sep="\n").encode()
