"""Streams in HTTP response bodies, for server-sent events and NDJSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from typing import Any, cast

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stream_server.http.delivery.asgi_scope import (
    CONNECTION,
    OBSERVED_HEAD_KEY,
    SERVER_SEND_KEY,
    abort_response,
    find_extension,
    find_header,
    keep_slot,
)
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, HttpServerConnection
from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import Framing, Wire

MAX_CACHED_ORIGIN = 256
"""Longest `Origin` for which the head of a response is cached: clients choose it."""

HEADERS = {
    # Proxies must not store, buffer or compress the stream; compression buffers, too.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    # Intermediaries must forward each part at once (RFC 10036).
    "Incremental": "?1",
}


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers in the form of ASGI."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_stream(
    subscription: Subscription,
    response: Response,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    scheduler: WriteScheduler,
    framing: Framing,
    transport: str,
    first: bytes = b"",
    on_gone: Callable[[], None] | None = None,
    ping_interval: float | None = None,
) -> None:
    """Respond with frames until the stream or the connection ends, then close the subscription.

    Args:
        subscription: Where the frames come from.
        response: Status and headers.
        scope: Of the request.
        receive: Of the request.
        send: Of the request.
        scheduler: The write scheduler of the event loop.
        framing: Encodes a frame as bytes.
        transport: One of `scheduler.TRANSPORTS`.
        first: Bytes before the first frame.
        on_gone: Called if the client disconnects before the end of the stream.
        ping_interval: Seconds without a write after which a `ping` is sent, if shorter than that of the scheduler.
    """
    start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    connection: HttpServerConnection | None = find_extension(scope, CONNECTION)
    if (
        connection is not None
        and scope["method"] != "HEAD"
        and connection.claim_response(cast("dict[str, Any]", scope))
    ):
        try:
            head = await _capture_head(connection, scope, send, start)
            writer = DirectWriter(
                subscription,
                scheduler,
                connection,
                chunked_framing(framing),
                transport=transport,
                ping_interval=ping_interval,
            )
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
        server_send: Send = scope.get(SERVER_SEND_KEY, send)
        disconnect = wait_for_disconnect(receive)
        asgi_writer = AsgiWriter(
            subscription,
            scheduler,
            framing,
            server_send,
            disconnect,
            pack=_pack_body,
            transport=transport,
            ping_interval=ping_interval,
        )
        with asgi_writer.run() as finished:
            is_client_there = await finished
        if is_client_there:
            # The last chunk waits for the client too, if the write buffer is full.
            with anyio.move_on_after(scheduler.close_timeout) as close_timeout:
                await send(_body_message(b"", more=False))
            is_client_there = not close_timeout.cancelled_caught
        if not is_client_there:
            abort_response(scope)
    if on_gone is not None and not subscription.is_complete:
        on_gone()


async def _capture_head(connection: HttpServerConnection, scope: Scope, send: Send, start: Message) -> bytes:
    """Return the head of the response, which passes all middlewares at most once a second for equal requests."""
    # The key has everything that the head depends on: `CORSMiddleware` adds headers that depend on `Origin` alone.
    origin = find_header(scope, b"origin")
    is_cached = OBSERVED_HEAD_KEY not in scope and (origin is None or len(origin) <= MAX_CACHED_ORIGIN)
    kind = (start["status"], tuple(start["headers"]), origin) if is_cached else None
    if kind is not None and (head := connection.start_with_cached_head(kind)):
        return head
    connection.capture()
    try:
        await send(start)
    except BaseException:
        connection.flush()
        raise
    return connection.flush(kind)


@cache
def chunked_framing(framing: Framing) -> Framing:
    """Return a framing that makes a chunk of each frame (RFC 9112 section 7.1)."""

    def chunk(wire: Wire) -> bytes:
        return _encode_chunk(framing(wire))

    return chunk


def _encode_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected. What it sends until then is discarded."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _pack_body(_wires: Sequence[Wire], data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _body_message(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
