"""The end of a worker: what the tail of another process says reaches the hub of this one."""

from __future__ import annotations

import asyncio
import logging
import socket

import anyio

from stream_server.hub.hub import Hub
from stream_server.journal.tail import TailStatus
from stream_server.journal.undecodable_rows import Causes, ResyncTimer
from stream_server.server.metric_families import Family
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel, UndecodableMessage
from stream_server.server.workers.messages import (
    Anew,
    Ask,
    Batch,
    Begin,
    Counted,
    Down,
    Reconnect,
    Resync,
    Scrape,
    Serving,
    Standing,
    Watch,
)

log = logging.getLogger(__name__)

SUMS_SECONDS = 3.0
"""How long to wait for what all processes have counted, before only what this one has is told."""


class Relayed:
    """Hears of the journal from another process: a `duties.Upstream`.

    Args:
        sock: Leads to that process.
        hub: Where batches go.
        metrics: What this process counts.
    """

    def __init__(self, sock: socket.socket, hub: Hub, metrics: Metrics) -> None:
        self._sock = sock
        self._hub = hub
        self._metrics = metrics
        self._channel: Channel[Down] | None = None
        self._sums: dict[int, asyncio.Future[list[Family]]] = {}
        self._watch_is_told = False
        self._causes = Causes()
        self._resync_timer = ResyncTimer(self._request_resync)
        self.status = TailStatus()
        self.warnings: list[str] = []

    async def run(self) -> None:
        """Hand on what is told, until cancelled. When the other process is gone, this one will be stopped."""
        channel: Channel[Down] = await Channel.open(self._sock, Down)
        self._channel = channel
        channel.send(Serving())
        self._hub.on_watch(self._tell_of_watcher)
        try:
            while True:
                await self._do_next(channel)
        except EOFError:
            self.status = TailStatus(problems=["the process that follows the journal is gone"])
            await asyncio.Event().wait()
        finally:
            self._resync_timer.cancel()
            channel.close()

    async def families(self) -> list[Family]:
        """Return what all processes together have counted."""
        assert self._channel is not None, "whoever asks has been served"
        number = max(self._sums, default=0) + 1
        answer: asyncio.Future[list[Family]] = asyncio.get_running_loop().create_future()
        self._sums[number] = answer
        self._channel.send(Scrape(number))
        try:
            with anyio.move_on_after(SUMS_SECONDS):
                return await answer
        finally:
            del self._sums[number]
        return self._metrics.families()

    async def _do_next(self, channel: Channel[Down]) -> None:
        """Handle the next message. One that cannot be decoded or handled costs a resync, never the process."""
        try:
            message = await channel.receive()
        except UndecodableMessage as error:
            self._fail(error)
            return
        try:
            await self._do(message, channel)
        except Exception as error:  # noqa: BLE001 # it is logged, once for each cause
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._metrics.message_failed()
        if self._causes.is_new(repr(error)):
            log.error(
                "Skipped a message of the process that follows the journal; clients are resynced",
                exc_info=error,
                extra={"action": "message_failed"},
            )
        self._resync_timer.request()

    def _request_resync(self) -> None:
        assert self._channel is not None, "a message was received"
        self._channel.send(Resync())

    async def _do(self, message: Down, channel: Channel[Down]) -> None:
        if isinstance(message, Batch):
            self._hub.dispatch(message.transitions, message.cursor, message.read)
        elif isinstance(message, Begin):
            self._hub.begin(message.cursor)
        elif isinstance(message, Anew):
            self._hub.begin_anew(message.cursor, message.reason)
        elif isinstance(message, Reconnect):
            await self._hub.reconnect(message.cursor)
        elif isinstance(message, Standing):
            self.status = TailStatus(message.connected, message.hears, message.problems)
            self.warnings = message.warnings
        elif isinstance(message, Ask):
            channel.send(Counted(message.number, self._hub.watching, self._metrics.families()))
        elif (answer := self._sums.get(message.number)) is not None and not answer.done():
            answer.set_result(message.families)

    def _tell_of_watcher(self) -> None:
        """Say that somebody watches; once in a turn of the loop, however many begin."""
        if not self._watch_is_told:
            self._watch_is_told = True
            asyncio.get_running_loop().call_soon(self._tell_now)

    def _tell_now(self) -> None:
        self._watch_is_told = False
        assert self._channel is not None, "the hub tells only once there is one"
        self._channel.send(Watch())
