"""Authentication messages on a WebSocket, first or later: `{"op": "auth", "token": "…"}`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import anyio
import msgspec
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from stream_server.auth.authorizer import Caller, LivePermission
from stream_server.auth.revalidation import is_credential_refused
from stream_server.errors import (
    AirflowRefused,
    BadRequest,
    Draining,
    StreamServerError,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from stream_server.http.request_slot import reattribute_connection
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Ack, Close, Refusal
from stream_server.protocol.schema import INVALID_JSON
from stream_server.protocol.wire import Wire

SUBPROTOCOL = "airflow-stream"
"""The subprotocol that is accepted (RFC 6455 section 1.9). Others are not selected, above all none with a token."""

AUTH_TIMEOUT_SECONDS = 5.0
"""Time in which a client must send its first message, if that must authenticate it."""

MAX_ID_LENGTH = 64

FORBIDDEN = 403

Token = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~+/-]+=*$", max_length=16_384)]
"""RFC 6750 section 2.1."""


class Introduction(msgspec.Struct, tag_field="op", tag="auth", forbid_unknown_fields=True):
    """Authenticate with a bearer token of Airflow, or with a new one before the last one expires."""

    token: Annotated[Token, msgspec.Meta(description="Bearer token of Airflow's API, which identifies the caller.")]

    id: Annotated[str, msgspec.Meta(description="What the client called it; empty where it gave no name.")] = ""

    @property
    def caller(self) -> Caller:
        return Caller.from_token(self.token)


class _OperationHead(msgspec.Struct):
    op: str = ""
    id: str = ""


async def accept_handshake(websocket: WebSocket) -> None:
    """Accept the handshake, unless it was accepted already."""
    if websocket.application_state is WebSocketState.CONNECTING:
        offered = websocket.scope.get("subprotocols", ())
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)


def may_authenticate_later(caller: Caller, error: AirflowRefused) -> bool:
    """Whether a caller that Airflow has refused may still authenticate by a message.

    Browsers can't send `Authorization` with a handshake, but always send their cookies, which may be stale.
    """
    return error.status == Unauthenticated.status and "authorization" not in caller.headers


async def receive_auth(websocket: WebSocket) -> Introduction:
    """Return the first message of a client, which must authenticate it.

    Raises:
        Unauthenticated: There is none in time, or it is another message.
        WebSocketDisconnect: The client has disconnected.
    """
    expected = 'send {"op":"auth","token":"…"} first'
    with anyio.move_on_after(AUTH_TIMEOUT_SECONDS):
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        try:
            return msgspec.json.decode(message.get("text") or message.get("bytes") or b"", type=Introduction)
        except INVALID_JSON as error:
            raise Unauthenticated(f"Invalid message: {error}; {expected}") from None
    raise Unauthenticated(f"No message came within {AUTH_TIMEOUT_SECONDS:g} s; {expected}")


async def send_refusal(websocket: WebSocket, error: StreamServerError) -> None:
    """Send an error on an accepted WebSocket, and close that."""
    code = close_code_for(error)
    retry_ms = 1000 * error.retry_after if isinstance(error, Throttled) else None
    closed = Close(code=int(code), reason=error.title, reconnect=code.should_reconnect, retry_ms=retry_ms)
    await websocket.send_text(Wire(refusal_frame("", error)).text)
    await websocket.send_text(Wire(closed).text)
    await websocket.close(code, error.title)


def close_code_for(error: StreamServerError) -> CloseCode:
    if isinstance(error, Unavailable):
        return CloseCode.DRAINING if isinstance(error, Draining) else CloseCode.UNAVAILABLE
    if isinstance(error, Throttled):
        return CloseCode.THROTTLED
    if error.status == Unauthenticated.status or (isinstance(error, AirflowRefused) and is_credential_refused(error)):
        return CloseCode.UNAUTHENTICATED
    return CloseCode.FORBIDDEN if error.status == FORBIDDEN else CloseCode.REFUSED


def refusal_frame(message_id: str, error: StreamServerError) -> Refusal:
    problem = error.problem_body()
    return Refusal(
        id=message_id[:MAX_ID_LENGTH],
        problem=problem["type"],
        title=problem["title"],
        status=problem["status"],
        detail=problem["detail"],
    )


class WebSocketAuth:
    """Handles the messages of a client on the WebSocket of one run. Only `auth`, with a new token, has a meaning there.

    Args:
        scope: Of the connection.
        guard: The permission of the stream; `None` if no caller needs one.
        subscription: Gets the replies.
    """

    __slots__ = ("_guard", "_revalidation", "_scope", "_subscription")

    def __init__(self, scope: Scope, guard: LivePermission | None, subscription: Subscription) -> None:
        self._scope, self._guard, self._subscription = scope, guard, subscription
        self._revalidation: asyncio.Task[None] | None = None

    def handle(self, text: str | bytes) -> None:
        try:
            operation = msgspec.json.decode(text, type=_OperationHead)
        except INVALID_JSON:
            return
        if operation.op != "auth":
            return
        try:
            message = msgspec.json.decode(text, type=Introduction)
        except INVALID_JSON as error:
            self._push_refusal(operation.id, BadRequest(f"Invalid message: {error}"))
            return
        if self._revalidation is not None:
            self._push_refusal(
                message.id, BadRequest("The previous token is still being verified; wait for its `ack` or `error`")
            )
            return
        self._revalidation = asyncio.create_task(self._revalidate(message), name="revalidation")

    async def _revalidate(self, message: Introduction) -> None:
        try:
            if self._guard is not None:
                await self._guard.revalidate(message.caller)
                reattribute_connection(self._scope, message.caller.headers)
        except StreamServerError as error:
            self._push_refusal(message.id, error)
        else:
            self._subscription.push([Wire(Ack(op="auth", id=message.id[:MAX_ID_LENGTH]))])
        finally:
            self._revalidation = None

    def _push_refusal(self, message_id: str, error: StreamServerError) -> None:
        self._subscription.push([Wire(refusal_frame(message_id, error))])
