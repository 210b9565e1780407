"""WebSocket (RFC 6455): one text message for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime
from struct import pack

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.http.caller import identify_caller, refuse_foreign_origin
from stream_server.http.delivery.scope import CONNECTION, find_extension, keep_slot
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, ServerConnection, pack_frames
from stream_server.http.params import parse_resume_point, parse_run_key, parse_watch_options
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
"""RFC 6455 section 7.4.1: the purpose of the connection has been fulfilled."""

FINAL_TEXT_FRAME = 0x81
MAX_7_BIT_LENGTH, MAX_16_BIT_LENGTH = 125, 0xFFFF
"""Largest payloads whose length stands in 7 and in 16 bits."""


async def serve_run_websocket(websocket: WebSocket) -> None:
    """Answer an upgrade of `…/dagRuns/{run_id}/stream`. What is wrong is told before the handshake, as over HTTP.

    Only who does not say who he is gets his handshake, and a few seconds to say it then.
    """
    state: State = websocket.scope["state"]
    refuse_foreign_origin(websocket)
    caller = await identify_caller(websocket)
    key, asked = parse_run_key(websocket), parse_watch_options(websocket)
    try:
        permission = await authorize_run(state["authorizer"], caller, key)
    except AirflowRefused as error:
        if not may_authenticate_later(caller, error):
            raise
    else:
        authenticate_connection(websocket.scope, caller.headers)
        await _serve_run(websocket, permission, asked)
        return
    await accept_handshake(websocket)
    with suppress(WebSocketDisconnect):
        try:
            said = await receive_auth(websocket)
            permission = await authorize_run(state["authorizer"], said.caller, key)
            authenticate_connection(websocket.scope, said.caller.headers)
            await websocket.send_text(Wire(Ack(op="auth", id=said.id[:MAX_ID_LENGTH])).text)
            await _serve_run(websocket, permission, asked)
        except StreamServerError as error:
            await send_refusal(websocket, error)


async def _serve_run(websocket: WebSocket, permission: Permission, asked: WatchOptions) -> None:
    state: State = websocket.scope["state"]
    came_from = parse_resume_point(websocket)
    if came_from is not None and came_from.has_ended:
        await accept_handshake(websocket)
        await websocket.close(NORMAL_CLOSURE)
        return
    key = RunKey(permission.scope.dag_id, permission.scope.run_id)
    subscription = await state["hub"].subscribe(key, permission.restrict_options(asked), resume_from=came_from)
    guard = permission.bind(subscription, send_auth_expiring)
    conversation = WebSocketAuth(websocket.scope, guard, subscription)
    line: ServerConnection | None = find_extension(websocket.scope, CONNECTION)
    if line is not None:
        await _serve_directly(websocket, line, conversation, subscription)
        return

    async def send_frames(wires: Sequence[Wire]) -> None:
        for wire in wires:
            await websocket.send_text(wire.text)

    with closing(subscription):
        await accept_handshake(websocket)
        listening = _read_messages(websocket, conversation)
        delivery = AsgiWriter(
            subscription,
            state["scheduler"],
            encode_text_message,
            send_frames,
            listening,
            pack=pack_frames,
            transport="websocket",
        )
        with delivery.run() as over:
            there = await over
        # Who has gone has nobody left to tell.
        if there:
            await close_websocket(websocket, subscription.closed)


async def _serve_directly(
    websocket: WebSocket, line: ServerConnection, conversation: WebSocketAuth, subscription: Subscription
) -> None:
    """Accept the handshake, and leave the rest to a delivery that writes to the connection."""
    state: State = websocket.scope["state"]
    try:
        await accept_handshake(websocket)
        delivery = DirectWriter(
            subscription, state["scheduler"], line, encode_text_message, conversation.handle, transport="websocket"
        )
    except BaseException:
        subscription.close()
        raise
    keep_slot(websocket.scope, subscription)
    delivery.start_detached(subscription)


def send_auth_expiring(subscription: Subscription, expires_at: datetime) -> None:
    """Tell a client that his token is about to expire; he can send another one."""
    subscription.push([Wire(AuthExpiring(expires_at=expires_at))])


def encode_text_message(wire: Wire) -> bytes:
    """Return a frame as an unmasked text message of one fragment (RFC 6455 section 5.2)."""
    text = wire.text.encode()
    if len(text) <= MAX_7_BIT_LENGTH:
        head = pack("!BB", FINAL_TEXT_FRAME, len(text))
    elif len(text) <= MAX_16_BIT_LENGTH:
        head = pack("!BBH", FINAL_TEXT_FRAME, MAX_7_BIT_LENGTH + 1, len(text))
    else:
        head = pack("!BBQ", FINAL_TEXT_FRAME, MAX_7_BIT_LENGTH + 2, len(text))
    return head + text


async def close_websocket(websocket: WebSocket, closed: Close | None) -> None:
    """Say good-bye, as long as the client can be expected to read it."""
    state: State = websocket.scope["state"]
    with suppress(WebSocketDisconnect), anyio.move_on_after(state["scheduler"].close_timeout):
        await websocket.close(*close_code_and_reason(closed))


def close_code_and_reason(closed: Close | None) -> tuple[int, str]:
    """Return the code and the reason with which a connection ends."""
    return (NORMAL_CLOSURE, "") if closed is None else (closed.code, closed.reason)


async def _read_messages(websocket: WebSocket, conversation: WebSocketAuth) -> None:
    """Hear what the client says, until it has gone."""
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        conversation.handle(message.get("text") or message.get("bytes") or b"")
