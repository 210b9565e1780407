"""`…/dagRuns/{run_id}/stream` as a WebSocket (RFC 6455): one text message per frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime
from struct import pack

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.domain.outcome import WatchOptions
from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.http.caller import identify_caller, refuse_foreign_origin
from stream_server.http.delivery.asgi_scope import CONNECTION, find_extension, keep_slot
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, ServerConnection, pack_frames
from stream_server.http.params import parse_ping_interval, parse_resume_point, parse_run_key, parse_watch_options
from stream_server.http.permission import Permission, authorize_run
from stream_server.http.request_slot import authenticate_connection
from stream_server.http.state import State
from stream_server.http.websocket_auth import (
    MAX_ID_LENGTH,
    WebSocketAuth,
    accept_handshake,
    may_authenticate_later,
    receive_auth,
    send_refusal,
)
from stream_server.hub.subscription import Subscription
from stream_server.protocol.frames import Ack, AuthExpiring, Close
from stream_server.protocol.wire import Wire

NORMAL_CLOSURE = 1000
"""Close code (RFC 6455 section 7.4.1)."""

FINAL_TEXT_FRAME = 0x81
"""First byte of an unfragmented text message: FIN and opcode 1 (RFC 6455 section 5.2)."""

MAX_7_BIT_LENGTH, MAX_16_BIT_LENGTH = 125, 0xFFFF
"""Largest payload lengths that fit into 7 and into 16 bits."""


async def serve_run_websocket(websocket: WebSocket) -> None:
    """Serve the WebSocket of one run.

    A request that is refused gets an HTTP response instead of the handshake. A client without a credential gets the
    handshake, and a few seconds to send an `auth` message: browsers cannot send the header `Authorization`.
    """
    state: State = websocket.scope["state"]
    refuse_foreign_origin(websocket)
    caller = await identify_caller(websocket)
    key, options = parse_run_key(websocket), parse_watch_options(websocket)
    parse_ping_interval(websocket)
    try:
        permission = await authorize_run(state["authorizer"], caller, key)
    except AirflowRefused as error:
        if not may_authenticate_later(caller, error):
            raise
    else:
        authenticate_connection(websocket.scope, caller.headers)
        await _serve_run(websocket, permission, options)
        return
    await accept_handshake(websocket)
    with suppress(WebSocketDisconnect):
        try:
            auth = await receive_auth(websocket)
            permission = await authorize_run(state["authorizer"], auth.caller, key)
            authenticate_connection(websocket.scope, auth.caller.headers)
            await websocket.send_text(Wire(Ack(op="auth", id=auth.id[:MAX_ID_LENGTH])).text)
            await _serve_run(websocket, permission, options)
        except StreamServerError as error:
            await send_refusal(websocket, error)


async def _serve_run(websocket: WebSocket, permission: Permission, options: WatchOptions) -> None:
    state: State = websocket.scope["state"]
    resume_point = parse_resume_point(websocket)
    if resume_point is not None and resume_point.has_ended:
        await accept_handshake(websocket)
        await websocket.close(NORMAL_CLOSURE)
        return
    key = parse_run_key(websocket)
    subscription = await state["hub"].subscribe(key, permission.restrict_options(options), resume_from=resume_point)
    guard = permission.bind(subscription, send_auth_expiring)
    websocket_auth = WebSocketAuth(websocket.scope, guard, subscription)
    connection: ServerConnection | None = find_extension(websocket.scope, CONNECTION)
    if connection is not None:
        await _serve_directly(websocket, connection, websocket_auth, subscription)
        return

    async def send_frames(wires: Sequence[Wire]) -> None:
        for wire in wires:
            await websocket.send_text(wire.text)

    with closing(subscription):
        await accept_handshake(websocket)
        reading = _read_messages(websocket, websocket_auth)
        writer = AsgiWriter(
            subscription,
            state["scheduler"],
            encode_text_message,
            send_frames,
            reading,
            pack=pack_frames,
            transport="websocket",
            ping_interval=parse_ping_interval(websocket),
        )
        with writer.run() as finished:
            is_connected = await finished
        if is_connected:
            await close_websocket(websocket, subscription.closed)


async def _serve_directly(
    websocket: WebSocket, connection: ServerConnection, websocket_auth: WebSocketAuth, subscription: Subscription
) -> None:
    """Accept the handshake, and return: the writer goes on without a task of its own."""
    state: State = websocket.scope["state"]
    try:
        await accept_handshake(websocket)
        writer = DirectWriter(
            subscription,
            state["scheduler"],
            connection,
            encode_text_message,
            websocket_auth.handle,
            transport="websocket",
            ping_interval=parse_ping_interval(websocket),
        )
    except BaseException:
        subscription.close()
        raise
    keep_slot(websocket.scope, subscription)
    writer.start_detached(subscription)


def send_auth_expiring(subscription: Subscription, expires_at: datetime) -> None:
    """Announce that the token expires soon; the client can send a new one."""
    subscription.push([Wire(AuthExpiring(expires_at=expires_at))])


def encode_text_message(wire: Wire) -> bytes:
    """Return a frame as an unmasked, unfragmented text message (RFC 6455 section 5.2)."""
    text = wire.text.encode()
    if len(text) <= MAX_7_BIT_LENGTH:
        head = pack("!BB", FINAL_TEXT_FRAME, len(text))
    elif len(text) <= MAX_16_BIT_LENGTH:
        head = pack("!BBH", FINAL_TEXT_FRAME, MAX_7_BIT_LENGTH + 1, len(text))
    else:
        head = pack("!BBQ", FINAL_TEXT_FRAME, MAX_7_BIT_LENGTH + 2, len(text))
    return head + text


async def close_websocket(websocket: WebSocket, closed: Close | None) -> None:
    """Send the close frame, and wait for the client's for a limited time."""
    state: State = websocket.scope["state"]
    with suppress(WebSocketDisconnect), anyio.move_on_after(state["scheduler"].close_timeout):
        await websocket.close(*close_code_and_reason(closed))


def close_code_and_reason(closed: Close | None) -> tuple[int, str]:
    return (NORMAL_CLOSURE, "") if closed is None else (closed.code, closed.reason)


async def _read_messages(websocket: WebSocket, websocket_auth: WebSocketAuth) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        websocket_auth.handle(message.get("text") or message.get("bytes") or b"")
