"""A short stream that needs neither a run nor the database: it shows what a proxy in front does to streams.

Its path is one that a proxy leads here together with the streams, and its headers are theirs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.http.delivery.pump import PING
from stream_server.http.delivery.sse import frame
from stream_server.http.delivery.streaming_body import HEADERS
from stream_server.http.endpoints.websocket import NORMAL_CLOSURE

PROBE_PATH = "/api/v2/stream/probe"

PING_COUNT = 4
"""Frames of the stream; the first one is due at once."""

PING_INTERVAL = 0.25
"""Seconds between two of them."""


async def stream_pings(request: Request) -> Response:
    """Answer `GET /api/v2/stream/probe` with a few pings as server-sent events."""
    return ProbeResponse(iter(()), headers=HEADERS)


class ProbeResponse(EventSourceResponse):
    """Pings, one by one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of them. It takes a second, so that a client that goes earlier need not be noticed."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for number in range(PING_COUNT if scope["method"] != "HEAD" else 0):
            await asyncio.sleep(PING_INTERVAL if number else 0)
            await send({"type": "http.response.body", "body": PING.framed(frame), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve_ping_websocket(websocket: WebSocket) -> None:
    """Answer an upgrade of `/api/v2/stream/probe` with the same pings."""
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        for number in range(PING_COUNT):
            await asyncio.sleep(PING_INTERVAL if number else 0)
            await websocket.send_text(PING.text)
        await websocket.close(NORMAL_CLOSURE)
