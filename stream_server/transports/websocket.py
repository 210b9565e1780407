"""WebSocket (RFC 6455): one text message for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from struct import pack

from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.frames import Close, Wire
from stream_server.subscription import Subscription
from stream_server.transports.caller import caller_of, refuse_foreign_origin
from stream_server.transports.courier import courier
from stream_server.transports.delivery import LINE, Line, Stepped, Straight
from stream_server.transports.places import keep_place
from stream_server.transports.request import State, question, run_key, since

NORMAL_CLOSURE = 1000
"""RFC 6455 section 7.4.1: the purpose of the connection has been fulfilled."""

FINAL_TEXT = 0x81
SHORT, LONGER = 125, 0xFFFF
"""Largest payloads whose length stands in 7 and in 16 bits."""


async def stream(websocket: WebSocket) -> None:
    """Answer an upgrade of `…/dagRuns/{run_id}/stream`. What is wrong is told before the handshake, as over HTTP."""
    state: State = websocket.scope["state"]
    refuse_foreign_origin(websocket)
    caller = await caller_of(websocket)
    key, asked = run_key(websocket), question(websocket)
    await state["authorizer"].run(caller, key)

    came_from = since(websocket)
    if came_from is not None and came_from.ended:
        await websocket.accept()
        await websocket.close(NORMAL_CLOSURE)
        return
    watch = state["hub"].watch(key, asked, since=came_from)
    line = websocket.scope.get(LINE)
    if line is not None:
        await _send_straight(websocket, line, watch)
        return

    async def send_frames(wires: Sequence[Wire]) -> None:
        for wire in wires:
            await websocket.send_text(wire.text)

    async with watch as subscription:
        await websocket.accept()
        mail = courier(state["settings"].ping_interval)
        with Stepped(subscription, mail, send_frames, _disconnected(websocket)).attended() as over:
            there = await over
        # Who has gone has nobody left to tell.
        if there:
            with suppress(WebSocketDisconnect):
                await websocket.close(*closing(subscription.closed))


async def _send_straight(websocket: WebSocket, line: Line, watch: AbstractAsyncContextManager[Subscription]) -> None:
    """Accept the handshake, and leave the rest to a delivery that writes to the connection."""
    state: State = websocket.scope["state"]
    subscription = await watch.__aenter__()
    try:
        await websocket.accept()
        delivery = Straight(subscription, courier(state["settings"].ping_interval), line, frame)
    except BaseException as error:
        await watch.__aexit__(type(error), error, error.__traceback__)
        raise
    keep_place(websocket.scope, delivery.over)
    delivery.begin_alone(watch)


def frame(wire: Wire) -> bytes:
    """Return a frame as an unmasked text message of one fragment (RFC 6455 section 5.2)."""
    text = wire.text.encode()
    if len(text) <= SHORT:
        head = pack("!BB", FINAL_TEXT, len(text))
    elif len(text) <= LONGER:
        head = pack("!BBH", FINAL_TEXT, SHORT + 1, len(text))
    else:
        head = pack("!BBQ", FINAL_TEXT, SHORT + 2, len(text))
    return head + text


def closing(closed: Close | None) -> tuple[int, str]:
    """Return the code and the reason with which a connection ends."""
    return (NORMAL_CLOSURE, "") if closed is None else (closed.code, closed.reason)


async def _disconnected(websocket: WebSocket) -> None:
    """Wait until the client has gone. What it says meanwhile has no meaning on a stream of one run."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
