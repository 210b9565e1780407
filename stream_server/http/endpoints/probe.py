"""`/api/v2/stream/probe`: a short stream that needs neither a run nor the database.

It shows whether a proxy in front of the server buffers streams. Path and headers are those of streams, so that the
proxy applies the same rules.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.http.delivery.sse import encode_event
from stream_server.http.delivery.streaming_body import HEADERS
from stream_server.http.endpoints.websocket import NORMAL_CLOSURE
from stream_server.protocol.wire import PING

PROBE_PATH = "/api/v2/stream/probe"

PING_COUNT = 4
"""Number of pings; the first one is sent at once."""

PING_INTERVAL = 0.25
"""Seconds between two pings."""


async def stream_pings(request: Request) -> Response:
    return ProbeResponse(iter(()), headers=HEADERS)


class ProbeResponse(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The base class watches for a disconnect; a stream of one second does not need that.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for number in range(PING_COUNT if scope["method"] != "HEAD" else 0):
            await asyncio.sleep(PING_INTERVAL if number else 0)
            await send({"type": "http.response.body", "body": PING.framed(encode_event), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve_ping_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        for number in range(PING_COUNT):
            await asyncio.sleep(PING_INTERVAL if number else 0)
            await websocket.send_text(PING.text)
        await websocket.close(NORMAL_CLOSURE)
