"""The end of the process that follows the journal: what the tail says goes on to every worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio

from stream_server.domain.transition import ReadTiming, Transition
from stream_server.hub.task_set import TaskSet
from stream_server.journal.run_store import RunStore
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
    Resync,
    ResyncMessage,
    StartMessage,
    TailStatusMessage,
    TotalMetrics,
    TotalMetricsRequest,
    WorkerMessage,
    WorkerMetrics,
    WorkerReady,
)

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""How often workers are asked what they have counted, so that little is forgotten when one dies."""

WORKER_TIMEOUT_SECONDS = 30.0
"""For how long a worker may say nothing, also after its start, before it is taken for dead."""

METRICS_TIMEOUT_SECONDS = 1.0
"""How long a scrape waits for the answers of all workers; who is late is told as it was before."""


class WorkerConnection:
    """A worker, as the relay sees it."""

    def __init__(self, channel: Channel[FromWorker]) -> None:
        self.channel = channel
        self.is_serving = False
        self.has_subscribers = False
        self.families: list[MetricFamily] = []
        """What it has counted when it was asked last."""

        self.pending_requests: dict[int, asyncio.Future[None]] = {}


class Relay:
    """Whom the tail tells, for all workers: a `tail.Audience`.

    Args:
        runs: Whose connections are made anew when the database server may be another one.
        wanted: How many workers there should be.
        on_message_failed: Called for each message of a worker that cannot be decoded.
    """

    def __init__(self, runs: RunStore, wanted: int, on_message_failed: Callable[[], None]) -> None:
        self._run_store = runs
        self._worker_count = wanted
        self._on_message_failed = on_message_failed
        self._causes = LoggedCauses()
        self._scrapes = TaskSet("scrape")
        self._workers: set[WorkerConnection] = set()
        self._metrics_of_ended_workers: list[MetricFamily] = []
        """What those have counted that are gone: a sum must not shrink."""

        self._position: JournalPosition | None = None
        self._notify_subscribed: Callable[[], None] = lambda: None
        self._journal_source: JournalSource | None = None
        self._request_number = 0

    # What the tail says.

    @property
    def has_subscribers(self) -> bool:
        """Whether anything is watched in any worker."""
        return any(member.has_subscribers for member in self._workers)

    def on_subscribe(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""
        self._notify_subscribed = call

    def wants_output_of(self, transition: Transition) -> bool:  # the question is the same for all
        """Want what tasks say in all runs: that somebody begins to watch one is heard here too late."""
        return True

    def start(self, cursor: JournalPosition) -> None:
        """Say from where on batches will come."""
        self._position = cursor
        self._broadcast(StartMessage(cursor))

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None) -> None:
        """Hand on a batch."""
        self._position = cursor
        self._broadcast(BatchMessage(list(transitions), cursor, read))

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        """Say that what was known may not be true any more."""
        self._position = cursor
        self._broadcast(ResyncMessage(cursor, reason))

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Say that the database server may be another one."""
        await self._run_store.reconnect()
        self._broadcast(ReconnectMessage(cursor))

    # The workers.

    @property
    def serving_count(self) -> int:
        """How many workers serve."""
        return sum(member.is_serving for member in self._workers)

    def attach(self, upstream: JournalSource) -> None:
        """Tell workers from now on how the tail is doing."""
        self._journal_source = upstream

    def send_status(self) -> None:
        """Tell every worker how tail and workers are doing now."""
        self._broadcast(self._build_status())

    async def serve_worker(self, channel: Channel[FromWorker]) -> None:
        """Tell a worker everything, and do what it asks, for as long as it lives.

        Raises:
            TimeoutError: It has said nothing for so long that it will not any more.
        """
        member = WorkerConnection(channel)
        if self._position is not None:
            channel.send(StartMessage(self._position))
        self._workers.add(member)
        self.send_status()
        try:
            while True:
                try:
                    with anyio.fail_after(WORKER_TIMEOUT_SECONDS):
                        message = await channel.receive()
                except UndecodableMessage as error:
                    self._skip(error)
                else:
                    self._handle(member, message)
        except EOFError:
            return
        finally:
            self._workers.discard(member)
            self._metrics_of_ended_workers = [
                family
                for family in sum_families([self._metrics_of_ended_workers, member.families])
                if family.is_cumulative
            ]
            for answered in member.pending_requests.values():
                answered.cancel()
            channel.close()
            self.send_status()

    async def send_heartbeats(self) -> None:
        """Ask workers now and then what they have counted, until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.send_status()
            await self._request_metrics()

    async def collect_metrics(self) -> list[MetricFamily]:
        """Return what all workers have counted, those included that are gone."""
        await self._request_metrics()
        return sum_families([self._metrics_of_ended_workers, *(member.families for member in self._workers)])

    def _skip(self, error: UndecodableMessage) -> None:
        self._on_message_failed()
        if self._causes.add_if_new(str(error)):
            log.error("Skipped a message of a worker: %s", error, extra={"action": "message_failed"})

    def _handle(self, member: WorkerConnection, message: FromWorker) -> None:
        if isinstance(message, WorkerMetrics):
            member.has_subscribers, member.families = message.has_subscribers, message.families
            if (answered := member.pending_requests.pop(message.number, None)) is not None and not answered.done():
                answered.set_result(None)
        elif isinstance(message, TotalMetricsRequest):
            self._scrapes.start(self._send_total_metrics(member, message.number))
        elif isinstance(message, WorkerReady):
            member.is_serving = True
            self.send_status()
        elif isinstance(message, Resync):
            if self._position is not None:
                # The channel keeps the order: batches after this cursor follow this message.
                member.channel.send(ResyncMessage(self._position, "transitions_lost"))
        else:
            member.has_subscribers = True
            self._notify_subscribed()

    async def _send_total_metrics(self, member: WorkerConnection, number: int) -> None:
        assert self._journal_source is not None, "workers are started when there is one"
        families = sum_families([await self._journal_source.collect_metrics(), await self.collect_metrics()])
        member.channel.send(TotalMetrics(number, families))

    async def _request_metrics(self) -> None:
        self._request_number += 1
        number, answers = self._request_number, []
        for member in self._workers:
            answered = member.pending_requests[number] = asyncio.get_running_loop().create_future()
            answers.append(answered)
            member.channel.send(MetricsRequest(number))
        if answers:
            await asyncio.wait(answers, timeout=METRICS_TIMEOUT_SECONDS)

    def _build_status(self) -> TailStatusMessage:
        assert self._journal_source is not None, "workers are started when there is one"
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
        for member in self._workers:
            member.channel.send_encoded(data)
