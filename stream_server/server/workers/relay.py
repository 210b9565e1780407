"""The supervisor's end of the relay: sends what the tail reads to every worker, and collects the workers' metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio
from typing_extensions import override

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.domain.transition_frames import is_output
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.filters import Filter
from stream_server.journal.run_store import RunStore
from stream_server.journal.tail import BatchSink
from stream_server.journal.undecodable_rows import LoggedCauses
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason
from stream_server.server.journal_service import JournalSource
from stream_server.server.metric_families import MetricFamily, sum_families
from stream_server.server.workers.channel import Channel, UndecodableMessage, encode_message
from stream_server.server.workers.messages import (
    BatchMessage,
    FromWorker,
    MetricsRequest,
    ReconnectMessage,
    ResyncMessage,
    ResyncRequest,
    StartMessage,
    TailStatusMessage,
    TotalMetrics,
    TotalMetricsRequest,
    WatchStarted,
    WorkerMessage,
    WorkerMetrics,
    WorkerReady,
)

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""How often workers are asked for their metrics. What a worker has counted since then is lost when it dies."""

WORKER_TIMEOUT_SECONDS = 30.0
"""A worker that sends nothing for so long, also after its start, is killed."""

METRICS_TIMEOUT_SECONDS = 1.0
"""How long a scrape waits for the workers; of those that do not answer in time, the previous metrics are used."""


class WorkerConnection:
    """A worker as the relay knows it."""

    def __init__(self, channel: Channel[FromWorker]) -> None:
        self.channel = channel
        self.is_serving = False
        self.has_subscribers = False
        self.families: list[MetricFamily] = []
        """The metrics of its last answer."""

        self.pending_requests: dict[int, asyncio.Future[None]] = {}
        """Set when the worker has answered, by the number of the request."""

        self._watched_runs: set[RunKey] = set()
        self._output_filters: list[Filter] = []

    def wants_output_of(self, transition: Transition) -> bool:
        """Whether a client of the worker watches the output of the run."""
        return RunKey(transition.dag_id, transition.run_id) in self._watched_runs or any(
            output_filter.matches_ids(transition) for output_filter in self._output_filters
        )

    def update_watches(
        self, *, started: Sequence[RunKey] = (), ended: Sequence[RunKey] = (), output_filters: list[Filter] | None
    ) -> None:
        self._watched_runs.update(started)
        self._watched_runs.difference_update(ended)
        if output_filters is not None:
            self._output_filters = output_filters


class Relay(BatchSink):
    """The tail's sink for all workers.

    Args:
        run_store: Reconnects when the tail reports that the database server may be another one.
        worker_count: How many workers there should be.
        on_message_failed: Called for each message of a worker that cannot be decoded.
    """

    def __init__(self, run_store: RunStore, worker_count: int, on_message_failed: Callable[[], None]) -> None:
        self._run_store = run_store
        self._worker_count = worker_count
        self._on_message_failed = on_message_failed
        self._causes = LoggedCauses()
        self._workers: set[WorkerConnection] = set()
        self._metrics_of_ended_workers: list[MetricFamily] = []
        """Cumulative metrics only: a sum must not shrink when a worker ends."""

        self._position: JournalPosition | None = None
        self._notify_subscribed: Callable[[], None] = lambda: None
        self._journal_source: JournalSource | None = None
        self._request_number = 0
        self._tasks = TaskSet("relay")

    # The tail's side: `BatchSink`.

    @property
    @override
    def has_subscribers(self) -> bool:
        return any(worker.has_subscribers for worker in self._workers)

    @override
    def on_subscribe(self, call: Callable[[], None]) -> None:
        self._notify_subscribed = call

    @override
    def wants_output_of(self, transition: Transition) -> bool:
        # A worker may watch a run whose `WatchStarted` has not arrived yet. It then reads the missing output itself
        # (`RelayClient`), so that not every token of every task is read and sent to every worker.
        return any(worker.wants_output_of(transition) for worker in self._workers)

    @override
    def start(self, position: JournalPosition) -> None:
        self._position = position
        self._broadcast(StartMessage(position))

    @override
    def dispatch(self, transitions: Sequence[Transition], position: JournalPosition, timing: ReadTiming | None) -> None:
        self._position = position
        with_output = [one for one in transitions if one.body is not None and is_output(one)]
        # Most workers want the same output, mostly none: each batch is encoded once for all workers that want the same.
        encoded: dict[frozenset[int], bytes] = {}
        for worker in self._workers:
            unwanted = frozenset(one.seq for one in with_output if not worker.wants_output_of(one))
            if unwanted not in encoded:
                kept = [one._replace(body=None) if one.seq in unwanted else one for one in transitions]
                encoded[unwanted] = encode_message(BatchMessage(kept, position, timing))
            worker.channel.send_encoded(encoded[unwanted])

    @override
    def resync(self, position: JournalPosition, reason: ResetReason) -> None:
        self._position = position
        self._broadcast(ResyncMessage(position, reason))

    @override
    async def reconnect(self, position: JournalPosition) -> None:
        await self._run_store.reconnect()
        self._broadcast(ReconnectMessage(position))

    # The workers' side.

    @property
    def serving_count(self) -> int:
        """Number of workers that accept connections."""
        return sum(worker.is_serving for worker in self._workers)

    def attach(self, journal_source: JournalSource) -> None:
        """Set the source of the status and of the metrics of this process. Due before the first worker is served."""
        self._journal_source = journal_source

    def send_status(self) -> None:
        """Send the current status of the tail and of the workers to every worker."""
        self._broadcast(self._build_status())

    async def serve_worker(self, channel: Channel[FromWorker]) -> None:
        """Send a worker what the tail reads, and answer its requests, until it ends.

        Raises:
            TimeoutError: The worker has sent nothing for `WORKER_TIMEOUT_SECONDS`.
        """
        worker = WorkerConnection(channel)
        if self._position is not None:
            channel.send(StartMessage(self._position))
        self._workers.add(worker)
        self.send_status()
        try:
            while True:
                try:
                    with anyio.fail_after(WORKER_TIMEOUT_SECONDS):
                        message = await channel.receive()
                except UndecodableMessage as error:
                    self._skip(error)
                else:
                    self._handle(worker, message)
        except EOFError:
            return
        finally:
            self._workers.discard(worker)
            self._metrics_of_ended_workers = [
                family
                for family in sum_families([self._metrics_of_ended_workers, worker.families])
                if family.is_cumulative
            ]
            for answered in worker.pending_requests.values():
                answered.cancel()
            channel.close()
            self.send_status()

    async def send_heartbeats(self) -> None:
        """Send every worker the status and a request for its metrics every `HEARTBEAT_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.send_status()
            await self._request_metrics()

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return the sum of the metrics of all workers, including those that have ended."""
        await self._request_metrics()
        return sum_families([self._metrics_of_ended_workers, *(worker.families for worker in self._workers)])

    async def close(self) -> None:
        """Stop answering requests."""
        await self._tasks.aclose()

    def _skip(self, error: UndecodableMessage) -> None:
        self._on_message_failed()
        if self._causes.add_if_new(str(error)):
            log.error("Skipped a message of a worker: %s", error, extra={"action": "message_failed"})

    def _handle(self, worker: WorkerConnection, message: FromWorker) -> None:
        if isinstance(message, WorkerMetrics):
            worker.has_subscribers, worker.families = message.has_subscribers, message.families
            worker.update_watches(ended=message.ended_runs, output_filters=message.output_filters)
            answered = worker.pending_requests.pop(message.number, None)
            if answered is not None and not answered.done():
                answered.set_result(None)
        elif isinstance(message, TotalMetricsRequest):
            self._tasks.start(self._send_total_metrics(worker, message.number), "total metrics")
        elif isinstance(message, WatchStarted):
            worker.has_subscribers = True
            worker.update_watches(started=message.runs, output_filters=message.output_filters)
            self._notify_subscribed()
        elif isinstance(message, ResyncRequest):
            if self._position is not None:
                # The channel keeps the order: batches after this position follow this message.
                worker.channel.send(ResyncMessage(self._position, "transitions_lost"))
        else:
            assert isinstance(message, WorkerReady)
            worker.is_serving = True
            self.send_status()

    async def _send_total_metrics(self, worker: WorkerConnection, number: int) -> None:
        assert self._journal_source is not None, "`attach` comes first"
        own, of_workers = await self._journal_source.collect_metrics(), await self.collect_metrics()
        worker.channel.send(TotalMetrics(number, sum_families([own, of_workers])))

    async def _request_metrics(self) -> None:
        self._request_number += 1
        number, answers = self._request_number, []
        for worker in self._workers:
            answered = worker.pending_requests[number] = asyncio.get_running_loop().create_future()
            answers.append(answered)
            worker.channel.send(MetricsRequest(number))
        if answers:
            await asyncio.wait(answers, timeout=METRICS_TIMEOUT_SECONDS)

    def _build_status(self) -> TailStatusMessage:
        assert self._journal_source is not None, "`attach` comes first"
        status, missing = self._journal_source.status, self._worker_count - self.serving_count
        problems = [*status.problems]
        if missing:
            problems.append(
                f"{missing} of {self._worker_count} workers do not serve yet, or have died and are being replaced"
            )
        return TailStatusMessage(
            status.is_connected, status.receives_notifications, problems, self._journal_source.warnings
        )

    def _broadcast(self, message: WorkerMessage) -> None:
        data = encode_message(message)
        for worker in self._workers:
            worker.channel.send_encoded(data)
