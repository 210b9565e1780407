"""WebSocket (RFC 6455): one text message for each frame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.frames import Wire
from stream_server.transports.pump import pump
from stream_server.transports.request import State, question, refuse_foreign_origin, run_key, since

NORMAL_CLOSURE = 1000
"""RFC 6455 section 7.4.1: the purpose of the connection has been fulfilled."""


async def stream(websocket: WebSocket) -> None:
    """Answer an upgrade of `…/dagRuns/{run_id}/stream`. What is wrong is told before the handshake, as over HTTP."""
    state: State = websocket.scope["state"]
    refuse_foreign_origin(websocket)
    key, asked = run_key(websocket), question(websocket)
    await state["authorizer"].authorize(websocket, key)

    async def send_frames(wires: Sequence[Wire]) -> None:
        for wire in wires:
            await websocket.send_text(wire.text)

    came_from = since(websocket)
    if came_from is not None and came_from.ended:
        await websocket.accept()
        await websocket.close(NORMAL_CLOSURE)
        return
    async with state["hub"].watch(key, asked, since=came_from) as subscription:
        await websocket.accept()
        gone = asyncio.create_task(_disconnected(websocket), name="websocket disconnect")
        try:
            await pump(subscription, gone=gone, silence=state["settings"].ping_interval, send=send_frames)
            if not gone.done():
                closed = subscription.closed
                await websocket.close(
                    NORMAL_CLOSURE if closed is None else closed.code,
                    "" if closed is None else closed.reason,
                )
        except WebSocketDisconnect:
            # The client went while we were sending; there is nobody left to tell.
            return
        finally:
            gone.cancel()


async def _disconnected(websocket: WebSocket) -> None:
    """Wait until the client has gone. What it says meanwhile has no meaning on a stream of one run."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
