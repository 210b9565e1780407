"""Streaming over plain HTTP: what server-sent events and NDJSON share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stream_server.frames import Wire
from stream_server.subscription import Subscription
from stream_server.transports.pump import pump

HEADERS = {
    # Proxies must neither store, transform (compress, and so buffer) nor buffer the stream.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class Streaming(NamedTuple):
    """What is streamed, and how."""

    watch: AbstractAsyncContextManager[Subscription]
    """Where frames come from. What is wrong is raised on entering, before the first header."""

    silence: float
    """Seconds without a frame after which a `ping` is sent."""

    on_gone: Callable[[], None] | None = None
    """Called where the client went before the end."""


async def send_stream(
    streaming: Streaming,
    response: Response,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    frame: Callable[[Wire], bytes],
    first: bytes = b"",
) -> None:
    """Answer with frames until the stream ends, the connection must, or the client is gone.

    Args:
        streaming: What is streamed.
        response: Whose headers are sent.
        scope: Of the request.
        receive: Of the request.
        send: Of the request.
        frame: Makes bytes of a frame.
        first: Sent before the first frame.
    """

    async def send_frames(wires: Sequence[Wire]) -> None:
        await send(_body(b"".join([wire.framed(frame) for wire in wires])))

    async with streaming.watch as subscription:
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        if scope["method"] == "HEAD":
            await send(_body(b"", more=False))
            return
        gone = asyncio.create_task(disconnected(receive), name="disconnect")
        try:
            if first:
                await send(_body(first))
            await pump(subscription, gone=gone, silence=streaming.silence, send=send_frames)
            await send(_body(b"", more=False))
        finally:
            gone.cancel()
    if streaming.on_gone is not None and not subscription.complete:
        streaming.on_gone()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone. What it sends meanwhile has no meaning."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
