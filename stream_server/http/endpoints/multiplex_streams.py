"""The streams of one multiplexed WebSocket."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from starlette.types import Scope

from stream_server.auth.authorizer import Caller, LivePermission
from stream_server.errors import BadRequest, StreamIdInUse, StreamServerError, TooManySubscriptions
from stream_server.http.delivery.multiplex_queue import MultiplexQueue
from stream_server.http.endpoints.firehose import build_filter
from stream_server.http.endpoints.multiplex_messages import Subscribe, collect_filter_values, parse_run_stream
from stream_server.http.params import with_url_prefix
from stream_server.http.permission import authorize_firehose, authorize_run
from stream_server.http.request_slot import count_streams, reattribute_connection, record_join
from stream_server.http.state import State
from stream_server.http.websocket_auth import MAX_ID_LENGTH, close_code_for, refusal_frame
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumePoint
from stream_server.protocol.frames import Ack, AuthExpiring
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)


class _Stream:
    __slots__ = ("guard", "is_firehose", "opening", "subscription")

    def __init__(self) -> None:
        self.opening: asyncio.Task[None] | None = None
        self.guard: LivePermission | None = None
        self.is_firehose = False
        self.subscription: Subscription | None = None
        """`None` while the stream opens, and after it has been closed."""

    def close(self) -> None:
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.close()


class MultiplexStreams:
    """Opens and closes the streams of one connection, each with an id that the client chooses.

    The frames of all streams, and the replies to the client, go through `queue`. A stream has a task of its own only
    while it opens. It counts toward the limit from its `subscribe` message until its last frame has been taken, or
    until the client has room for the refusal. While the connection has no stream, its idle timeout runs.
    """

    def __init__(self, scope: Scope, caller: Caller) -> None:
        self.queue = MultiplexQueue(self._on_finished)
        self._scope = scope
        self._state: State = scope["state"]
        self._caller = caller
        self._streams: dict[str, _Stream] = {}
        self._announced_expiry: datetime | None = None

    @property
    def caller(self) -> Caller:
        """The caller, by the last credential that the client has sent."""
        return self._caller

    def open(self, message: Subscribe) -> None:
        """Start to open a stream. Its `ack` or its refusal follows through the queue.

        Raises:
            StreamIdInUse: The connection has a stream with this id.
            TooManySubscriptions: The connection has the maximum number of streams.
            TooManyJoins: The caller opens streams too fast.
            TooManyStreams: The caller has as many streams as allowed, on all connections together.
        """
        if message.id in self._streams:
            raise StreamIdInUse(f"This connection has a stream {message.id!r}; unsubscribe it, or choose another id")
        most = self._state["settings"].max_subscriptions
        if len(self._streams) >= most:
            raise TooManySubscriptions(f"This connection has {most} streams, the maximum; unsubscribe one first")
        record_join(self._scope)
        count_streams(self._scope, len(self._streams) + 1)
        self._state["idle_timeouts"].stop(self._close_idle_connection)
        stream = self._streams[message.id] = _Stream()
        stream.opening = asyncio.create_task(self._open(message, stream), name="multiplex: open stream")

    async def close(self, stream_id: str) -> None:
        """Close a stream, even while it opens.

        Raises:
            BadRequest: The connection has no such stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise BadRequest(f"There is no stream {stream_id[:MAX_ID_LENGTH]!r} on this connection")
        await self._close(stream_id, stream)

    async def close_all(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            await self._close(stream_id, stream)
        self._state["idle_timeouts"].stop(self._close_idle_connection)

    async def change_caller(self, caller: Caller) -> None:
        """Revalidate all streams with another credential, and open later ones with it."""
        self._caller = caller
        await asyncio.gather(*(self._revalidate(stream, caller) for stream in list(self._streams.values())))

    def start_idle_timeout(self) -> None:
        self._state["idle_timeouts"].start(self._close_idle_connection)

    async def _open(self, message: Subscribe, stream: _Stream) -> None:
        caller = self._caller
        try:
            subscription = await self._subscribe(message, stream, caller)
        except StreamServerError as error:
            await self._refuse(message.id, stream, error)
            return
        except Exception:
            log.exception("A stream of a multiplexed WebSocket could not be opened")
            await self._refuse(message.id, stream, StreamServerError("Internal error; the server's log has details"))
            return
        if self._caller is not caller:
            # The client has sent another credential while the stream opened.
            await self._revalidate(stream, self._caller)
        await self.queue.reply(Wire(Ack(op="subscribe", id=message.id)))
        self.queue.add(message.id, subscription)

    async def _subscribe(self, message: Subscribe, stream: _Stream, caller: Caller) -> Subscription:
        hub, authorizer = self._state["hub"], self._state["authorizer"]
        resume_point = ResumePoint.parse(message.cursor)
        if isinstance(message.run_id, str):
            key, options = parse_run_stream(message, message.run_id)
            options = with_url_prefix(self._scope, options)
            permission = await authorize_run(authorizer, caller, key)
            self._attribute_connection(caller)
            subscription = await hub.subscribe(key, permission.restrict_options(options), resume_from=resume_point)
        else:
            stream.is_firehose = True
            permission = await authorize_firehose(authorizer, caller)
            stream_filter = await build_filter(self._state, collect_filter_values(message))
            self._attribute_connection(caller)
            subscription = await hub.subscribe_firehose(
                stream_filter, resume_from=resume_point, permissions=authorizer.readable_dags(caller)
            )
        stream.subscription = subscription
        stream.guard = permission.bind(subscription, self._announce_expiry)
        return subscription

    def _attribute_connection(self, caller: Caller) -> None:
        # A credential that was replaced in the meantime must not be attributed again.
        if self._caller is caller:
            reattribute_connection(self._scope, caller.headers)

    async def _refuse(self, stream_id: str, stream: _Stream, error: StreamServerError) -> None:
        stream.close()
        await self.queue.reply(Wire(refusal_frame(stream_id, error)))
        self._remove(stream_id, stream)

    async def _revalidate(self, stream: _Stream, caller: Caller) -> None:
        subscription = stream.subscription
        if subscription is None or stream.guard is None:
            return
        try:
            await stream.guard.revalidate(caller)
        except StreamServerError as error:
            subscription.disconnect(close_code_for(error), str(error))
            return
        # The stream may have been closed during the revalidation.
        if stream.is_firehose and stream.subscription is subscription:
            readable = self._state["authorizer"].readable_dags(caller)
            self._state["hub"].update_permissions(subscription, readable)

    def _announce_expiry(self, _subscription: Subscription, expires_at: datetime) -> None:
        # Once per token: each stream reports the expiry.
        if self._announced_expiry != expires_at:
            self._announced_expiry = expires_at
            self.queue.push(Wire(AuthExpiring(expires_at=expires_at)))

    def _on_finished(self, stream_id: str) -> None:
        stream = self._streams[stream_id]
        self._remove(stream_id, stream)
        stream.close()

    async def _close(self, stream_id: str, stream: _Stream) -> None:
        if stream.opening is not None:
            stream.opening.cancel()
            await asyncio.wait({stream.opening})
        # The stream may have finished, and its id may be in use again.
        if self._streams.get(stream_id) is stream:
            self.queue.remove(stream_id)
            self._remove(stream_id, stream)
        stream.close()

    def _remove(self, stream_id: str, stream: _Stream) -> None:
        if self._streams.get(stream_id) is stream:
            del self._streams[stream_id]
            count_streams(self._scope, len(self._streams))
        if not self._streams:
            self.start_idle_timeout()

    def _close_idle_connection(self) -> None:
        self.queue.disconnect(CloseCode.IDLE, "The connection had no stream for too long")
