"""Streaming over plain HTTP: what server-sent events and NDJSON share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from typing import Any, cast

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.scope import (
    CONNECTION,
    OBSERVED_HEAD_KEY,
    SERVER_SEND_KEY,
    abort_response,
    find_extension,
    find_header,
    keep_slot,
)
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, HttpServerConnection
from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import Framing, Wire

HEADERS = {
    # Proxies must neither store, transform (compress, and so buffer) nor buffer the stream.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_stream(
    subscription: Subscription,
    response: Response,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    scheduler: WriteScheduler,
    frame: Framing,
    transport: str,
    first: bytes = b"",
    on_gone: Callable[[], None] | None = None,
) -> None:
    """Answer with frames until the stream or the connection ends, then close the subscription.

    Args:
        subscription: Where frames come from.
        response: Whose headers are sent.
        scope: Of the request.
        receive: Of the request.
        send: Of the request.
        scheduler: Who brings frames to their client.
        frame: Makes bytes of a frame.
        transport: One of `scheduler.TRANSPORTS`.
        first: Sent before the first frame.
        on_gone: Called where the client went before the end.
    """
    start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    line: HttpServerConnection | None = find_extension(scope, CONNECTION)
    if line is not None and scope["method"] != "HEAD" and line.claim_response(cast("dict[str, Any]", scope)):
        try:
            head = await _capture_head(line, scope, send, start)
            writer = DirectWriter(subscription, scheduler, line, chunked_framing(frame), transport=transport)
        except BaseException:
            subscription.close()
            raise
        keep_slot(scope, subscription)
        writer.start_detached(subscription, on_gone, first=head + _encode_chunk(first) if first else head)
        return

    with closing(subscription):
        await send(start)
        if scope["method"] == "HEAD":
            await send(_body_message(b"", more=False))
            return
        if first:
            await send(_body_message(first))
        send_on: Send = scope.get(SERVER_SEND_KEY, send)
        gone = wait_for_disconnect(receive)
        asgi_writer = AsgiWriter(subscription, scheduler, frame, send_on, gone, pack=_pack_body, transport=transport)
        with asgi_writer.run() as over:
            ended = await over
        if ended:
            with anyio.move_on_after(scheduler.close_timeout) as parting:
                await send(_body_message(b"", more=False))
            ended = not parting.cancelled_caught
        if not ended:
            abort_response(scope)
    if on_gone is not None and not subscription.is_complete:
        on_gone()


async def _capture_head(line: HttpServerConnection, scope: Scope, send: Send, start: Message) -> bytes:
    """Return the head of the answer. It comes through all middlewares, once a second for all who get the same."""
    # What `CORSMiddleware` adds depends on the origin alone.
    kind = (
        None
        if OBSERVED_HEAD_KEY in scope
        else (start["status"], tuple(start["headers"]), find_header(scope, b"origin"))
    )
    if kind is not None and (head := line.start_with_cached_head(kind)):
        return head
    line.capture()
    try:
        await send(start)
    except BaseException:
        line.flush()
        raise
    return line.flush(kind)


@cache
def chunked_framing(frame: Framing) -> Framing:
    """Return the way to frame something that is sent in chunks: a chunk for each frame (RFC 9112 section 7.1)."""

    def chunk(wire: Wire) -> bytes:
        return _encode_chunk(frame(wire))

    return chunk


def _encode_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has gone. What it sends meanwhile has no meaning."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _pack_body(_wires: Sequence[Wire], data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _body_message(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
