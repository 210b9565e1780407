"""The end of a worker: what the tail of another process says reaches the hub of this one."""

from __future__ import annotations

import asyncio
import logging
import socket

import anyio

from stream_server.hub.hub import Hub
from stream_server.journal.tail import TailStatus
from stream_server.journal.undecodable_rows import LoggedCauses, ResyncTimer
from stream_server.server.metric_families import MetricFamily
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel, UndecodableMessage
from stream_server.server.workers.messages import (
    BatchMessage,
    MetricsRequest,
    ReconnectMessage,
    Resync,
    ResyncMessage,
    StartMessage,
    TailStatusMessage,
    TotalMetricsRequest,
    ToWorker,
    WatchStarted,
    WorkerMetrics,
    WorkerReady,
)

log = logging.getLogger(__name__)

TOTAL_METRICS_TIMEOUT_SECONDS = 3.0
"""How long to wait for what all processes have counted, before only what this one has is told."""


class RelayClient:
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
        self._channel: Channel[ToWorker] | None = None
        self._pending_totals: dict[int, asyncio.Future[list[MetricFamily]]] = {}
        self._watch_is_scheduled = False
        self._causes = LoggedCauses()
        self._resync_timer = ResyncTimer(self._request_resync)
        self.status = TailStatus()
        self.warnings: list[str] = []

    async def run(self) -> None:
        """Hand on what is told, until cancelled. When the other process is gone, this one will be stopped."""
        channel: Channel[ToWorker] = await Channel.open(self._sock, ToWorker)
        self._channel = channel
        channel.send(WorkerReady())
        self._hub.on_subscribe(self._schedule_watch_message)
        try:
            while True:
                await self._do_next(channel)
        except EOFError:
            self.status = TailStatus(problems=["the process that follows the journal is gone"])
            await asyncio.Event().wait()
        finally:
            self._resync_timer.cancel()
            channel.close()

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return what all processes together have counted."""
        assert self._channel is not None, "whoever asks has been served"
        number = max(self._pending_totals, default=0) + 1
        answer: asyncio.Future[list[MetricFamily]] = asyncio.get_running_loop().create_future()
        self._pending_totals[number] = answer
        self._channel.send(TotalMetricsRequest(number))
        try:
            with anyio.move_on_after(TOTAL_METRICS_TIMEOUT_SECONDS):
                return await answer
        finally:
            del self._pending_totals[number]
        return self._metrics.collect()

    async def _do_next(self, channel: Channel[ToWorker]) -> None:
        """Handle the next message. One that cannot be decoded or handled costs a resync, never the process."""
        try:
            message = await channel.receive()
        except UndecodableMessage as error:
            self._fail(error)
            return
        try:
            await self._handle(message, channel)
        except Exception as error:  # noqa: BLE001 # it is logged, once for each cause
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._metrics.message_failed()
        if self._causes.add_if_new(repr(error)):
            log.error(
                "Skipped a message of the process that follows the journal; clients are resynced",
                exc_info=error,
                extra={"action": "message_failed"},
            )
        self._resync_timer.request()

    def _request_resync(self) -> None:
        assert self._channel is not None, "a message was received"
        self._channel.send(Resync())

    async def _handle(self, message: ToWorker, channel: Channel[ToWorker]) -> None:
        if isinstance(message, BatchMessage):
            self._hub.dispatch(message.transitions, message.position, message.timing)
        elif isinstance(message, StartMessage):
            self._hub.start(message.position)
        elif isinstance(message, ResyncMessage):
            self._hub.resync(message.position, message.reason)
        elif isinstance(message, ReconnectMessage):
            await self._hub.reconnect(message.position)
        elif isinstance(message, TailStatusMessage):
            self.status = TailStatus(message.is_connected, message.receives_notifications, message.problems)
            self.warnings = message.warnings
        elif isinstance(message, MetricsRequest):
            channel.send(WorkerMetrics(message.number, self._hub.has_subscribers, self._metrics.collect()))
        elif (answer := self._pending_totals.get(message.number)) is not None and not answer.done():
            answer.set_result(message.families)

    def _schedule_watch_message(self) -> None:
        """Say that somebody watches; once in a turn of the loop, however many begin."""
        if not self._watch_is_scheduled:
            self._watch_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._send_watch_message)

    def _send_watch_message(self) -> None:
        self._watch_is_scheduled = False
        assert self._channel is not None, "the hub tells only once there is one"
        self._channel.send(WatchStarted())
