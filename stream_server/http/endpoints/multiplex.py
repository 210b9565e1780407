"""`/api/v2/stream` as WebSocket: many streams on one connection, each with an identity that the client chooses.

What the client says: `{"op": "subscribe", "id": "a", …}`, `{"op": "unsubscribe", "id": "a"}` and
`{"op": "ping", "id": "p"}`. Each is answered by an `ack` or an `error` with that `id`; every frame of a stream bears it
as its last member. A refusal disturbs nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.auth.authorizer import Caller, LivePermission
from stream_server.auth.revalidation import is_credential_refused
from stream_server.errors import (
    AirflowRefused,
    BadParameter,
    BadRequest,
    StreamIdInUse,
    StreamServerError,
    TooManySubscriptions,
)
from stream_server.http.caller import identify_caller, refuse_foreign_origin
from stream_server.http.delivery.multiplex_queue import MultiplexQueue
from stream_server.http.delivery.scheduler import FrameWriter
from stream_server.http.delivery.scope import CONNECTION, find_extension
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, pack_frames
from stream_server.http.endpoints.firehose import build_filter
from stream_server.http.endpoints.multiplex_messages import (
    ClientMessage,
    Subscribe,
    Unsubscribe,
    collect_filter_values,
    parse_message,
    parse_run_stream,
    read_message_id,
)
from stream_server.http.endpoints.websocket import close_websocket, encode_text_message
from stream_server.http.params import refuse_unknown_parameters
from stream_server.http.permission import authorize_firehose, authorize_run
from stream_server.http.request_slot import authenticate_connection, reattribute_connection, record_join
from stream_server.http.state import State
from stream_server.http.websocket_auth import (
    MAX_ID_LENGTH,
    Introduction,
    accept_handshake,
    close_code_for,
    may_authenticate_later,
    receive_auth,
    refusal_frame,
    send_refusal,
)
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumePoint
from stream_server.protocol.frames import Ack, AuthExpiring
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

TRANSPORT = "multiplex"
"""How metrics name it."""


async def serve_multiplex(websocket: WebSocket) -> None:
    """Answer an upgrade of `/api/v2/stream`."""
    refuse_foreign_origin(websocket)
    caller = await identify_caller(websocket)
    # What is wanted is said in `subscribe`.
    refuse_unknown_parameters(websocket.query_params.keys(), frozenset())
    await accept_handshake(websocket)
    multiplex = Multiplex(websocket, caller)
    with suppress(WebSocketDisconnect):
        try:
            await multiplex.begin()
        except StreamServerError as error:
            await send_refusal(websocket, error)
            return
        await multiplex.serve()


class _Stream:
    """One stream of a connection."""

    def __init__(self) -> None:
        self.opening: asyncio.Task[None] | None = None
        self.guard: LivePermission | None = None
        self.many_dags = False
        """Whether it shows whatever DAGs its caller may read."""

        self.subscription: Subscription | None = None
        """What is due of it; `None` while it begins, and when it has been left."""

    def close(self) -> None:
        """Release all that it holds, if it has begun."""
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.close()


class Multiplex:
    """The streams of one connection.

    None of them has a task of its own but while it begins and while it ends; one delivery brings what is due of all.
    """

    def __init__(self, websocket: WebSocket, caller: Caller) -> None:
        self._websocket = websocket
        self._caller = caller
        self._state: State = websocket.scope["state"]
        self._streams: dict[str, _Stream] = {}
        self._bundle = MultiplexQueue(self._over)
        self._warned: datetime | None = None

    async def begin(self) -> None:
        """Have the client say who he is, where he must and has not.

        Raises:
            AirflowRefused: Airflow does not know him.
            Unauthenticated: He does not say.
            Unavailable: Airflow can't be asked.
        """
        authorizer = self._state["authorizer"]
        if not authorizer.requires_credential or not self._caller.is_anonymous:
            return
        try:
            # Airflow may have a role for who says nothing.
            await authorizer.check_dags(self._caller)
        except AirflowRefused as error:
            if may_authenticate_later(self._caller, error):
                await self._introduce(await receive_auth(self._websocket), authenticate_connection)

    async def serve(self) -> None:
        """Do what the client asks, and send what is due, until it is gone or the connection must end."""
        reading = asyncio.create_task(self._read(), name="multiplex reader")
        self._be_idle_later()
        try:
            with self._state["hub"].register_connection(self._bundle), self._delivery(reading).run() as over:
                there = await over
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            await self._end()
            self._bundle.drop_callback()
        if there:
            await close_websocket(self._websocket, self._bundle.closed)

    def _delivery(self, reading: asyncio.Task[None]) -> FrameWriter:
        line, courier = find_extension(self._websocket.scope, CONNECTION), self._state["scheduler"]
        if line is None:
            gone = _end_of(reading)
            return AsgiWriter(
                self._bundle, courier, encode_text_message, self._send, gone, pack=pack_frames, transport=TRANSPORT
            )
        delivery = DirectWriter(self._bundle, courier, line, encode_text_message, transport=TRANSPORT)
        reading.add_done_callback(lambda _: delivery.on_client_gone())
        return delivery

    async def _send(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            await self._websocket.send_text(wire.text)

    async def _read(self) -> None:
        """Do what the client asks, until it is gone."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or message.get("bytes") or b""
            try:
                await self._do(parse_message(text))
            except StreamServerError as error:
                await self._refuse(read_message_id(text), error)

    async def _do(self, operation: ClientMessage) -> None:
        if isinstance(operation, Introduction):
            await self._introduce(operation, reattribute_connection)
            return
        if not 0 < len(operation.id) <= MAX_ID_LENGTH:
            raise BadParameter(f"id must have 1 to {MAX_ID_LENGTH} characters")
        if isinstance(operation, Subscribe):
            self._subscribe(operation)
        elif isinstance(operation, Unsubscribe):
            await self._unsubscribe(operation.id)
        else:
            await self._bundle.reply(Wire(Ack(op="ping", id=operation.id)))

    def _subscribe(self, operation: Subscribe) -> None:
        if operation.id in self._streams:
            raise StreamIdInUse(f"There is a stream {operation.id!r} on this connection; end it, or choose another id")
        most = self._state["settings"].max_subscriptions
        if len(self._streams) >= most:
            raise TooManySubscriptions(f"This connection has {most} streams, the most that are allowed; end one first")
        record_join(self._websocket.scope)
        self._state["idle_timeouts"].stop(self._be_idle)
        stream = self._streams[operation.id] = _Stream()
        stream.opening = asyncio.create_task(self._begin(operation, stream), name="beginning of a stream")

    async def _unsubscribe(self, identity: str) -> None:
        stream = self._streams.get(identity)
        if stream is None:
            raise BadRequest(f"There is no stream {identity[:MAX_ID_LENGTH]!r} on this connection")
        await self._leave(identity, stream)
        await self._bundle.reply(Wire(Ack(op="unsubscribe", id=identity)))

    async def _introduce(self, said: Introduction, count_as: Callable[[Scope, Mapping[str, str]], None]) -> None:
        """Go on with another credential: what its bearer may not see ends."""
        authorizer, caller = self._state["authorizer"], said.caller
        try:
            await authorizer.check_dags(caller)
        except AirflowRefused as error:
            # He need not be allowed to list DAGs.
            if is_credential_refused(error):
                raise
        count_as(self._websocket.scope, caller.headers)
        self._caller = caller
        await asyncio.gather(*(self._renew(stream, caller) for stream in list(self._streams.values())))
        await self._bundle.reply(Wire(Ack(op="auth", id=said.id[:MAX_ID_LENGTH])))

    async def _renew(self, stream: _Stream, caller: Caller) -> None:
        authorizer, subscription = self._state["authorizer"], stream.subscription
        if subscription is None or stream.guard is None:
            return
        try:
            await stream.guard.revalidate(caller)
        except StreamServerError as error:
            subscription.disconnect(close_code_for(error), str(error))
            return
        if stream.many_dags and stream.subscription is subscription:
            self._state["hub"].update_permissions(subscription, authorizer.readable_dags(caller))

    def _expiring(self, subscription: Subscription, expires_at: datetime) -> None:
        """Tell the client once for all his streams that his token is about to expire."""
        if self._warned != expires_at:
            self._warned = expires_at
            self._bundle.push(Wire(AuthExpiring(expires_at=expires_at)))

    async def _begin(self, operation: Subscribe, stream: _Stream) -> None:
        caller = self._caller
        try:
            subscription = await self._open(operation, stream, caller)
        except StreamServerError as error:
            await self._refuse_stream(operation.id, stream, error)
            return
        except Exception:
            log.exception("A stream could not be begun")
            fault = StreamServerError("Internal error; the server's log has details")
            await self._refuse_stream(operation.id, stream, fault)
            return
        if self._caller is not caller:
            # He has said meanwhile that he is somebody else.
            await self._renew(stream, self._caller)
        await self._bundle.reply(Wire(Ack(op="subscribe", id=operation.id)))
        self._bundle.add(operation.id, subscription)

    async def _refuse_stream(self, identity: str, stream: _Stream, error: StreamServerError) -> None:
        # It counts among the streams, and ends with the connection, until the client has room for the answer.
        stream.close()
        await self._refuse(identity, error)
        self._forget(identity, stream)

    async def _open(self, operation: Subscribe, stream: _Stream, caller: Caller) -> Subscription:
        hub, since, authorizer = self._state["hub"], ResumePoint.parse(operation.cursor), self._state["authorizer"]
        if isinstance(operation.run_id, str):
            key, question = parse_run_stream(operation, operation.run_id)
            permission = await authorize_run(authorizer, caller, key)
            self._know_as(caller)
            subscription = await hub.subscribe(key, permission.restrict_options(question), resume_from=since)
        else:
            stream.many_dags = True
            permission = await authorize_firehose(authorizer, caller)
            wanted = await build_filter(self._state, collect_filter_values(operation))
            self._know_as(caller)
            subscription = await hub.subscribe_firehose(
                wanted, resume_from=since, permissions=authorizer.readable_dags(caller)
            )
        stream.subscription = subscription
        stream.guard = permission.bind(subscription, self._expiring)
        return subscription

    def _know_as(self, caller: Caller) -> None:
        if self._caller is caller:
            reattribute_connection(self._websocket.scope, caller.headers)

    def _over(self, identity: str) -> None:
        """A stream has sent its last frame: its name is free again."""
        stream = self._streams[identity]
        self._forget(identity, stream)
        stream.close()

    async def _leave(self, identity: str, stream: _Stream) -> None:
        """End a stream, however far it has come."""
        if stream.opening is not None:
            stream.opening.cancel()
            await asyncio.wait({stream.opening})
        if self._streams.get(identity) is stream:
            self._bundle.remove(identity)
            self._forget(identity, stream)
        stream.close()

    async def _end(self) -> None:
        """End all streams."""
        for identity, stream in list(self._streams.items()):
            await self._leave(identity, stream)
        self._state["idle_timeouts"].stop(self._be_idle)

    def _forget(self, identity: str, stream: _Stream) -> None:
        if self._streams.get(identity) is stream:
            del self._streams[identity]
        if not self._streams:
            self._be_idle_later()

    def _be_idle_later(self) -> None:
        self._state["idle_timeouts"].start(self._be_idle)

    def _be_idle(self) -> None:
        self._bundle.disconnect(CloseCode.IDLE, "There was no stream on this connection for too long")

    async def _refuse(self, identity: str, error: StreamServerError) -> None:
        await self._bundle.reply(Wire(refusal_frame(identity, error)))


async def _end_of(reading: asyncio.Task[None]) -> None:
    await asyncio.wait({reading})
