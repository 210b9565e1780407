"""The worker's end of the relay: passes what the supervisor's tail reads to the hub of this process."""

from __future__ import annotations

import asyncio
import logging
import socket

import anyio
from typing_extensions import override

from stream_server.domain.run_state import RunKey
from stream_server.errors import Unavailable
from stream_server.hub.filters import Filter
from stream_server.hub.hub import Hub
from stream_server.journal.output_bodies import add_output_bodies
from stream_server.journal.run_store import RunStore
from stream_server.journal.tail import TailStatus
from stream_server.journal.undecodable_rows import LoggedCauses, ResyncTimer
from stream_server.server.journal_service import JournalSource
from stream_server.server.metric_families import MetricFamily
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel, UndecodableMessage
from stream_server.server.workers.messages import (
    BatchMessage,
    MetricsRequest,
    ReconnectMessage,
    ResyncMessage,
    ResyncRequest,
    StartMessage,
    TailStatusMessage,
    TotalMetricsRequest,
    ToWorker,
    WatchStarted,
    WorkerMetrics,
    WorkerReady,
)

log = logging.getLogger(__name__)

OUTPUT_READ_SECONDS = 2.0
"""How long the read of missing output may hold up the messages behind it. The supervisor replaces silent workers."""

TOTAL_METRICS_TIMEOUT_SECONDS = 3.0
"""How long to wait for the metrics of all processes. After that, a scrape gets those of this process only."""


class RelayClient(JournalSource):
    """The journal as another process of this host reads it.

    Args:
        sock: Leads to that process.
        hub: Gets the batches.
        run_store: Reads output that the other process did not send.
        metrics: Those of this process.
    """

    def __init__(self, sock: socket.socket, hub: Hub, run_store: RunStore, metrics: Metrics) -> None:
        self._sock = sock
        self._hub = hub
        self._run_store = run_store
        self._metrics = metrics
        self._channel: Channel[ToWorker] | None = None
        self._pending_totals: dict[int, asyncio.Future[list[MetricFamily]]] = {}
        self._sent_runs: set[RunKey] = set()
        """Runs whose output the other process sends."""

        self._new_runs: set[RunKey] = set()
        self._sent_filters: set[Filter] = set()
        self._watch_is_scheduled = False
        self._causes = LoggedCauses()
        self._resync_timer = ResyncTimer(self._request_resync)
        self._status = TailStatus()
        self._warnings: list[str] = []

    @property
    @override
    def status(self) -> TailStatus:
        return self._status

    @property
    @override
    def warnings(self) -> list[str]:
        return self._warnings

    @override
    async def run(self) -> None:
        """Pass batches to the hub until cancelled. When the other process ends, `parent_watch` ends this one."""
        channel: Channel[ToWorker] = await Channel.open(self._sock, ToWorker)
        self._channel = channel
        channel.send(WorkerReady())
        self._hub.on_run_watched(self._add_run)
        self._hub.on_subscribe(self._schedule_watch_message)
        try:
            while True:
                await self._handle_next(channel)
        except EOFError:
            self._status = TailStatus(problems=["the process that follows the journal has ended"])
            await asyncio.Event().wait()
        finally:
            self._resync_timer.cancel()
            channel.close()

    @override
    async def collect_metrics(self) -> list[MetricFamily]:
        """Return the metrics of all processes; those of this one while the others can't be asked."""
        if self._channel is None:
            # The worker serves requests before the channel to the other process is open.
            return self._metrics.collect()
        number = max(self._pending_totals, default=0) + 1
        totals: asyncio.Future[list[MetricFamily]] = asyncio.get_running_loop().create_future()
        self._pending_totals[number] = totals
        self._channel.send(TotalMetricsRequest(number))
        try:
            with anyio.move_on_after(TOTAL_METRICS_TIMEOUT_SECONDS):
                return await totals
        finally:
            del self._pending_totals[number]
        return self._metrics.collect()

    async def _handle_next(self, channel: Channel[ToWorker]) -> None:
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
        self._metrics.record_failed_message()
        if self._causes.add_if_new(repr(error)):
            log.error(
                "Skipped a message of the process that follows the journal; clients are reset",
                exc_info=error,
                extra={"action": "message_failed"},
            )
        self._resync_timer.request()

    def _request_resync(self) -> None:
        assert self._channel is not None, "a message was received"
        self._channel.send(ResyncRequest())

    async def _handle(self, message: ToWorker, channel: Channel[ToWorker]) -> None:
        if isinstance(message, BatchMessage):
            await self._dispatch(message)
        elif isinstance(message, StartMessage):
            self._hub.start(message.position)
        elif isinstance(message, ResyncMessage):
            self._hub.resync(message.position, message.reason)
        elif isinstance(message, ReconnectMessage):
            await self._hub.reconnect(message.position)
        elif isinstance(message, TailStatusMessage):
            self._status = TailStatus(message.is_connected, message.receives_notifications, message.problems)
            self._warnings = message.warnings
        elif isinstance(message, MetricsRequest):
            channel.send(self._build_metrics(message.number))
        elif (totals := self._pending_totals.get(message.number)) is not None and not totals.done():
            totals.set_result(message.families)

    async def _dispatch(self, batch: BatchMessage) -> None:
        """Pass a batch to the hub, with the output that clients of this process watch.

        A batch may cross with the message that a run is watched. Its output is then missing, and is read here.
        """
        transitions = batch.transitions
        try:
            transitions = await add_output_bodies(transitions, self._hub.wants_output_of, self._read_output_bodies)
        except (Unavailable, TimeoutError) as error:
            # The clients are reset, and load the runs with their output as soon as PostgreSQL answers.
            log.warning("Output could not be read, clients are reset: %r", error)
            self._resync_timer.request()
        self._hub.dispatch(transitions, batch.position, batch.timing)

    async def _read_output_bodies(self, rows: list[int]) -> dict[int, str | None]:
        with anyio.fail_after(OUTPUT_READ_SECONDS):
            return await self._run_store.read_output_bodies(rows)

    def _build_metrics(self, number: int) -> WorkerMetrics:
        ended = [key for key in self._sent_runs if not self._hub.is_watched(key)]
        self._sent_runs.difference_update(ended)
        filters = self._take_changed_filters()
        return WorkerMetrics(number, self._hub.has_subscribers, ended, filters, self._metrics.collect())

    def _take_changed_filters(self) -> list[Filter] | None:
        filters = self._hub.output_filters()
        if filters == self._sent_filters:
            return None
        self._sent_filters = filters
        return [*filters]

    def _add_run(self, key: RunKey) -> None:
        if key not in self._sent_runs:
            self._new_runs.add(key)
            self._schedule_watch_message()

    def _schedule_watch_message(self) -> None:
        """Send one message for all clients that subscribe in one turn of the event loop."""
        if not self._watch_is_scheduled:
            self._watch_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._send_watch_message)

    def _send_watch_message(self) -> None:
        self._watch_is_scheduled = False
        assert self._channel is not None, "the hub calls back only after `run` has connected"
        new, self._new_runs = self._new_runs, set()
        self._sent_runs |= new
        self._channel.send(WatchStarted([*new], self._take_changed_filters()))
