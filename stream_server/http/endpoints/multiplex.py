"""`/api/v2/stream` as a WebSocket: several streams on one connection, each with an id that the client chooses.

The server replies to each message of the client with an `ack` or an `error` with the same `id`. Every frame of a stream
has the id as its last member. A refusal does not affect other streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream_server.auth.authorizer import Caller
from stream_server.auth.revalidation import is_credential_refused
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, BadParameter, StreamServerError, TicketOnlyReads
from stream_server.http.caller import airflow_api_for, identify_caller, refuse_foreign_origin
from stream_server.http.delivery.asgi_scope import CONNECTION, TICKET_KEY, find_extension
from stream_server.http.delivery.scheduler import FrameWriter
from stream_server.http.delivery.writers import AsgiWriter, DirectWriter, pack_frames
from stream_server.http.endpoints.human_input import send_answer
from stream_server.http.endpoints.multiplex_messages import (
    Answer,
    ClientMessage,
    Subscribe,
    Unsubscribe,
    parse_message,
    read_message_id,
)
from stream_server.http.endpoints.multiplex_streams import MultiplexStreams
from stream_server.http.endpoints.websocket import close_websocket, encode_text_message
from stream_server.http.params import parse_ping_interval, refuse_unknown_parameters
from stream_server.http.request_slot import authenticate_connection, reattribute_connection, record_join
from stream_server.http.state import State
from stream_server.http.websocket_auth import (
    MAX_ID_LENGTH,
    Introduction,
    accept_handshake,
    may_authenticate_later,
    receive_auth,
    refusal_frame,
    send_refusal,
)
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.protocol.bodies import InputAnswer
from stream_server.protocol.frames import Ack
from stream_server.protocol.wire import Wire

CONNECTION_PARAMETERS = frozenset({"ping"})
"""Query parameters of the connection."""

TRANSPORT = "multiplex"
"""Label in metrics."""


async def serve_multiplex(websocket: WebSocket) -> None:
    refuse_foreign_origin(websocket)
    caller = await identify_caller(websocket)
    # All others belong into `subscribe` messages.
    refuse_unknown_parameters(websocket.query_params.keys(), CONNECTION_PARAMETERS)
    parse_ping_interval(websocket)
    await accept_handshake(websocket)
    connection = MultiplexConnection(websocket, caller)
    with suppress(WebSocketDisconnect):
        try:
            await connection.authenticate(caller)
        except StreamServerError as error:
            await send_refusal(websocket, error)
            return
        await connection.serve()


class MultiplexConnection:
    """Handles the messages of one client, and sends the frames of its streams."""

    def __init__(self, websocket: WebSocket, caller: Caller) -> None:
        self._websocket = websocket
        self._state: State = websocket.scope["state"]
        self._streams = MultiplexStreams(websocket.scope, caller)
        self._queue = self._streams.queue
        self._answers = TaskSet("multiplex: answer")
        # A ticket is in a URL, which logs may keep, and was requested to read.
        self._only_reads = TICKET_KEY in websocket.scope

    async def authenticate(self, caller: Caller) -> None:
        """Wait for an `auth` message if the handshake had no credential and the server requires one.

        Raises:
            AirflowRefused: Airflow does not accept the credential.
            Unauthenticated: The client does not send a credential.
            Unavailable: Airflow does not respond.
        """
        authorizer = self._state["authorizer"]
        if not authorizer.requires_credential or not caller.is_anonymous:
            return
        try:
            # Airflow may have a role for anonymous users.
            await authorizer.check_dags(caller)
        except AirflowRefused as error:
            if may_authenticate_later(caller, error):
                await self._change_credential(await receive_auth(self._websocket), authenticate_connection)

    async def serve(self) -> None:
        """Handle messages and send frames until the client disconnects or the connection must end."""
        reading = asyncio.create_task(self._read_messages(), name="multiplex reader")
        self._streams.start_idle_timeout()
        try:
            with self._state["hub"].register_connection(self._queue), self._create_writer(reading).run() as finished:
                is_connected = await finished
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            await self._answers.aclose()
            await self._streams.close_all()
            # The queue and the streams refer to each other; without the cycle, they are freed at once.
            self._queue.drop_callback()
        if is_connected:
            await close_websocket(self._websocket, self._queue.closed)

    def _create_writer(self, reading: asyncio.Task[None]) -> FrameWriter:
        connection, scheduler = find_extension(self._websocket.scope, CONNECTION), self._state["scheduler"]
        if connection is None:
            return AsgiWriter(
                self._queue,
                scheduler,
                encode_text_message,
                self._send_frames,
                _wait_until_done(reading),
                pack=pack_frames,
                transport=TRANSPORT,
                ping_interval=parse_ping_interval(self._websocket),
            )
        writer = DirectWriter(
            self._queue,
            scheduler,
            connection,
            encode_text_message,
            transport=TRANSPORT,
            ping_interval=parse_ping_interval(self._websocket),
        )
        reading.add_done_callback(lambda _: writer.on_client_gone())
        return writer

    async def _send_frames(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            await self._websocket.send_text(wire.text)

    async def _read_messages(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or message.get("bytes") or b""
            try:
                await self._handle(parse_message(text))
            except StreamServerError as error:
                await self._queue.reply(Wire(refusal_frame(read_message_id(text), error)))

    async def _handle(self, message: ClientMessage) -> None:
        if isinstance(message, Introduction):
            await self._change_credential(message, reattribute_connection)
            return
        if not 0 < len(message.id) <= MAX_ID_LENGTH:
            raise BadParameter(f"`id` must have 1 to {MAX_ID_LENGTH} characters, got {len(message.id)}")
        if isinstance(message, Subscribe):
            self._streams.open(message)
        elif isinstance(message, Answer):
            if self._only_reads:
                raise TicketOnlyReads('A ticket permits reading only: send {"op":"auth","token":"…"} before an answer')
            record_join(self._websocket.scope)
            self._answers.start(self._answer(message), message.id)
        elif isinstance(message, Unsubscribe):
            await self._streams.close(message.id)
            await self._queue.reply(Wire(Ack(op="unsubscribe", id=message.id)))
        else:
            await self._queue.reply(Wire(Ack(op="ping", id=message.id)))

    async def _answer(self, message: Answer) -> None:
        """Pass an answer to Airflow, while other messages are handled."""
        answer = InputAnswer(message.chosen_options, message.params_input, message.asked_at)
        key = RunKey(message.dag_id, message.run_id)
        try:
            airflow = airflow_api_for(self._websocket, self._streams.caller)
            await send_answer(airflow, key, (message.task_id, message.map_index, message.iteration), answer)
        except StreamServerError as error:
            await self._queue.reply(Wire(refusal_frame(message.id, error)))
        else:
            await self._queue.reply(Wire(Ack(op="answer", id=message.id)))

    async def _change_credential(
        self, message: Introduction, attribute_connection: Callable[[Scope, Mapping[str, str]], None]
    ) -> None:
        caller = message.caller
        try:
            await self._state["authorizer"].check_dags(caller)
        except AirflowRefused as error:
            # A caller without the right to list DAGs is authenticated nevertheless.
            if is_credential_refused(error):
                raise
        attribute_connection(self._websocket.scope, caller.headers)
        self._only_reads = False
        await self._streams.change_caller(caller)
        await self._queue.reply(Wire(Ack(op="auth", id=message.id[:MAX_ID_LENGTH])))


async def _wait_until_done(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
