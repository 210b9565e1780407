"""A reverse proxy with behaviour that breaks streams: buffering, compression, short timeouts."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from support.waiting import eventually_async

Habit = Literal["pass on", "buffer", "compress", "compress and buffer", "strip headers", "hide the probe"]

HOP_BY_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding"}


@asynccontextmanager
async def proxy(upstream: str, habit: Habit) -> AsyncIterator[str]:
    """Forward HTTP to a server, but no WebSocket; yields the URL."""
    async with httpx.AsyncClient(base_url=upstream) as client:

        async def forward(request: Request) -> Response:
            if habit == "hide the probe" and "probe" in request.url.path:
                return Response("no such page", 404)
            forwarded = client.build_request(
                request.method, request.url.path, params=request.query_params, headers={"Accept-Encoding": "identity"}
            )
            response = await client.send(forwarded, stream=True)
            headers = {name: value for name, value in response.headers.items() if name not in HOP_BY_HOP}
            if habit == "strip headers":
                headers = {"content-type": headers["content-type"]}
            if habit.startswith("compress"):
                headers["content-encoding"] = "gzip"
            if habit.endswith("buffer"):
                body = await response.aread()
                await response.aclose()
                return Response(gzip.compress(body) if "compress" in habit else body, response.status_code, headers)
            body_parts = _passed_on(response, compressed="compress" in habit)
            return StreamingResponse(body_parts, response.status_code, headers)

        async with _serving(Starlette(routes=[Route("/{path:path}", forward)])) as url:
            yield url


async def _passed_on(response: httpx.Response, *, compressed: bool) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        async for part in response.aiter_bytes():
            yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) if compressed else part
        yield compressor.flush() if compressed else b""
    finally:
        await response.aclose()


@asynccontextmanager
async def _serving(app: Starlette) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    try:
        await eventually_async(lambda: server.started or task.done(), what="the proxy listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
