"""What clients say on a WebSocket about who they are: `{"op": "auth", "token": "…"}`, at first or later."""

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
from stream_server.protocol.wire import Wire

SUBPROTOCOL = "airflow-stream"
"""What clients may offer (RFC 6455 section 1.9); what else they do is not taken up, and above all no token."""

AUTH_TIMEOUT_SECONDS = 5.0
"""How long a client may take to say who he is."""

MAX_ID_LENGTH = 64

FORBIDDEN = 403

Token = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~+/-]+=*$", max_length=16_384)]
"""RFC 6750 section 2.1."""


class Introduction(msgspec.Struct, tag_field="op", tag="auth", forbid_unknown_fields=True):
    """Say who you are, with a bearer token of Airflow's; also with a new one, before the last has expired."""

    token: Annotated[Token, msgspec.Meta(description="Bearer token of Airflow's API, which identifies the caller.")]

    id: Annotated[str, msgspec.Meta(description="What the client called it; empty where it gave no name.")] = ""

    @property
    def caller(self) -> Caller:
        """Who says so."""
        return Caller.from_token(self.token)


class _OperationHead(msgspec.Struct):
    op: str = ""
    id: str = ""


async def accept_handshake(websocket: WebSocket) -> None:
    """Accept the handshake, unless that has been done."""
    if websocket.application_state is WebSocketState.CONNECTING:
        offered = websocket.scope.get("subprotocols", ())
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)


def may_authenticate_later(caller: Caller, error: AirflowRefused) -> bool:
    """Tell whether a caller whom Airflow does not know may say yet who he is.

    Browsers can't send an `Authorization` with a handshake, but always send what cookies they have.
    """
    return error.status == Unauthenticated.status and "authorization" not in caller.headers


async def receive_auth(websocket: WebSocket) -> Introduction:
    """Return what a client says first.

    Raises:
        Unauthenticated: It does not say who it is, or says something else.
        WebSocketDisconnect: It has gone.
    """
    wanted = 'send {"op":"auth","token":"…"} first'
    with anyio.move_on_after(AUTH_TIMEOUT_SECONDS):
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        try:
            return msgspec.json.decode(message.get("text") or message.get("bytes") or b"", type=Introduction)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unauthenticated(f"Not understood: {error}; {wanted}") from None
    raise Unauthenticated(f"You did not say who you are within {AUTH_TIMEOUT_SECONDS:g} s; {wanted}")


async def send_refusal(websocket: WebSocket, error: StreamServerError) -> None:
    """Tell on an open WebSocket what would have been told before the handshake, and end it."""
    code = close_code_for(error)
    retry_ms = 1000 * error.retry_after if isinstance(error, Throttled) else None
    closed = Close(code=int(code), reason=error.title, reconnect=code.should_reconnect, retry_ms=retry_ms)
    await websocket.send_text(Wire(refusal_frame("", error)).text)
    await websocket.send_text(Wire(closed).text)
    await websocket.close(code, error.title)


def close_code_for(error: StreamServerError) -> CloseCode:
    """Return the code that tells what an error tells."""
    if isinstance(error, Unavailable):
        return CloseCode.DRAINING if isinstance(error, Draining) else CloseCode.UNAVAILABLE
    if isinstance(error, Throttled):
        return CloseCode.THROTTLED
    if error.status == Unauthenticated.status or (isinstance(error, AirflowRefused) and is_credential_refused(error)):
        return CloseCode.UNAUTHENTICATED
    return CloseCode.FORBIDDEN if error.status == FORBIDDEN else CloseCode.REFUSED


def refusal_frame(identity: str, error: StreamServerError) -> Refusal:
    """Return the frame that tells an error."""
    problem = error.problem_body()
    return Refusal(
        id=identity[:MAX_ID_LENGTH],
        problem=problem["type"],
        title=problem["title"],
        status=problem["status"],
        detail=problem["detail"],
    )


class WebSocketAuth:
    """What a client says on the WebSocket of one run: that it has another token. All else has no meaning there.

    Args:
        scope: Of its connection.
        guard: Of its stream; `None` where everybody may see everything.
        subscription: Where answers go.
    """

    __slots__ = ("_guard", "_revalidation", "_scope", "_subscription")

    def __init__(self, scope: Scope, guard: LivePermission | None, subscription: Subscription) -> None:
        self._scope, self._guard, self._subscription = scope, guard, subscription
        self._revalidation: asyncio.Task[None] | None = None

    def handle(self, text: str | bytes) -> None:
        """Do what the client says."""
        try:
            operation = msgspec.json.decode(text, type=_OperationHead)
        except (msgspec.DecodeError, RecursionError):
            return
        if operation.op != "auth":
            return
        try:
            said = msgspec.json.decode(text, type=Introduction)
        except (msgspec.DecodeError, RecursionError) as error:
            self._push_refusal(operation.id, BadRequest(f"Not understood: {error}"))
            return
        if self._revalidation is not None:
            self._push_refusal(said.id, BadRequest("The last token is still being looked at"))
            return
        self._revalidation = asyncio.create_task(self._revalidate(said), name="another token")

    async def _revalidate(self, said: Introduction) -> None:
        try:
            if self._guard is not None:
                await self._guard.revalidate(said.caller)
                reattribute_connection(self._scope, said.caller.headers)
        except StreamServerError as error:
            self._push_refusal(said.id, error)
        else:
            self._subscription.push([Wire(Ack(op="auth", id=said.id[:MAX_ID_LENGTH]))])
        finally:
            self._revalidation = None

    def _push_refusal(self, identity: str, error: StreamServerError) -> None:
        self._subscription.push([Wire(refusal_frame(identity, error))])
