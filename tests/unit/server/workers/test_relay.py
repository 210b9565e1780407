"""The relay between the supervisor and its workers, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Counter

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import OUTPUT_KEY, ReadTiming, Transition, TransitionKind
from stream_server.errors import JournalUnreachable
from stream_server.hub.filters import Filter
from stream_server.hub.hub import Hub
from stream_server.journal import undecodable_rows
from stream_server.journal.tail import TailStatus
from stream_server.protocol.cursor import JournalPosition, JournalRow
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily, collect_registry
from stream_server.server.metrics import Metrics
from stream_server.server.workers import relay, relay_client
from stream_server.server.workers.channel import Channel
from stream_server.server.workers.messages import FromWorker, WorkerMessage
from stream_server.server.workers.relay import Relay
from stream_server.server.workers.relay_client import RelayClient
from support.waiting import eventually_async

POSITION = JournalPosition("ab12", 5, 9, (5, 7), JournalRow(3, 1_000_000))
LATER = JournalPosition("ab12", 9, 10)
TIMING = ReadTiming(0.002, 12.5)
AT = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=timezone.utc)
TRANSITION = Transition(3, 8, AT, TransitionKind.TASK, "chat", "r1", "answer", 2, 1, "running", "queued", start_date=AT)


OUTPUT = TRANSITION._replace(seq=4, kind=TransitionKind.XCOM, xcom_key=OUTPUT_KEY, body="[]")
RUN = RunKey("chat", "r1")
WITHOUT_BODY = OUTPUT._replace(body=None)


class HubDouble:
    """Records what the relay passes on."""

    def __init__(self) -> None:
        self.received: list[tuple[Any, ...]] = []
        self.watched: set[RunKey] = set()
        self.filters: set[Filter] = set()
        self.has_subscribers = False
        self.notify_subscribed: Callable[[], object] = list
        self.notify_run_watched: Callable[[RunKey], object] = list
        self.is_failing = False

    def on_subscribe(self, call: Callable[[], object]) -> None:
        self.notify_subscribed = call

    def on_run_watched(self, call: Callable[[RunKey], object]) -> None:
        self.notify_run_watched = call

    def is_watched(self, key: RunKey) -> bool:
        return key in self.watched

    def output_filters(self) -> set[Filter]:
        return self.filters

    def wants_output_of(self, transition: Transition) -> bool:
        return RunKey(transition.dag_id, transition.run_id) in self.watched or any(
            one.matches_ids(transition) for one in self.filters
        )

    def start(self, position: JournalPosition) -> None:
        self.received.append(("start", position))

    def dispatch(self, transitions: list[Transition], position: JournalPosition, timing: ReadTiming | None) -> None:
        if self.is_failing:
            raise RuntimeError("no state")
        self.received.append(("dispatch", transitions, position, timing))

    def resync(self, position: JournalPosition, reason: ResetReason) -> None:
        self.received.append(("resync", position, reason))

    async def reconnect(self, position: JournalPosition) -> None:
        await asyncio.sleep(0)
        self.received.append(("reconnect", position))


class RunStoreDouble:
    """The output of `OUTPUT`, and the number of reconnects."""

    def __init__(self) -> None:
        self.reconnects = 0
        self.reads: list[list[int]] = []
        self.is_failing = False
        self.is_hanging = False

    async def reconnect(self) -> None:
        self.reconnects += 1

    async def read_output_bodies(self, rows: list[int]) -> dict[int, str | None]:
        self.reads.append(rows)
        await asyncio.sleep(0)
        if self.is_hanging:
            await asyncio.Event().wait()
        if self.is_failing:
            raise JournalUnreachable("PostgreSQL does not answer")
        return {OUTPUT.seq: OUTPUT.body}


class MetricsDouble:
    """Metrics with one counter."""

    def __init__(self, calls: int) -> None:
        self.registry = CollectorRegistry()
        Counter("calls", "Calls.", registry=self.registry).inc(calls)
        self.failed_messages = 0

    def collect(self) -> list[MetricFamily]:
        return collect_registry(self.registry)

    def record_failed_message(self) -> None:
        self.failed_messages += 1


class JournalSourceDouble:
    """The journal service of the supervisor's process."""

    def __init__(self) -> None:
        self.status = TailStatus(is_connected=True, receives_notifications=True, problems=[])
        self.warnings: list[str] = ["the queue fills"]

    async def run(self) -> None:
        """Do nothing."""

    async def collect_metrics(self) -> list[MetricFamily]:
        return MetricsDouble(100).collect()


class Host:
    """A relay and its workers."""

    def __init__(self, worker_count: int) -> None:
        self.run_store = RunStoreDouble()
        self.metrics = MetricsDouble(0)
        self.worker_metrics: list[MetricsDouble] = []
        """The metrics of the workers, in the order of their start."""

        self.relay = Relay(cast("Any", self.run_store), worker_count, self.metrics.record_failed_message)
        self.journal_source = JournalSourceDouble()
        self.relay.attach(self.journal_source)

    @asynccontextmanager
    async def worker(self, calls: int = 0) -> AsyncIterator[tuple[RelayClient, HubDouble]]:
        ours, theirs = socket.socketpair()
        hub = HubDouble()
        self.worker_metrics.append(MetricsDouble(calls))
        worker = RelayClient(
            theirs, cast("Hub", hub), cast("Any", self.run_store), cast("Metrics", self.worker_metrics[-1])
        )
        channel: Channel[FromWorker] = await Channel.open(ours, FromWorker)
        serving = self.relay.serving_count
        tasks = [asyncio.create_task(self.relay.serve_worker(channel)), asyncio.create_task(worker.run())]
        await eventually_async(lambda: self.relay.serving_count == serving + 1)
        try:
            yield worker, hub
        finally:
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.relay.close()


async def test_workers_receive_what_the_tail_reads_in_order() -> None:
    host = Host(2)
    async with host.worker() as (_, one), host.worker() as (_, other):
        host.relay.start(POSITION)
        host.relay.dispatch([TRANSITION, TRANSITION], POSITION, TIMING)
        await host.relay.reconnect(POSITION)
        host.relay.resync(POSITION, "journal_changed")
        host.relay.dispatch([], POSITION, None)
        expected = [
            ("start", POSITION),
            ("dispatch", [TRANSITION, TRANSITION], POSITION, TIMING),
            ("reconnect", POSITION),
            ("resync", POSITION, "journal_changed"),
            ("dispatch", [], POSITION, None),
        ]
        await eventually_async(lambda: one.received == other.received == expected)
    assert host.run_store.reconnects == 1


async def test_later_worker_starts_at_the_position_of_the_tail() -> None:
    host = Host(1)
    host.relay.start(POSITION)
    host.relay.dispatch([TRANSITION], LATER, TIMING)
    async with host.worker() as (_, hub):
        host.relay.dispatch([], LATER, None)
        await eventually_async(lambda: hub.received == [("start", LATER), ("dispatch", [], LATER, None)])


async def test_workers_know_the_status_of_the_tail_and_of_all_workers() -> None:
    host = Host(2)
    async with host.worker() as (one, _):
        await eventually_async(lambda: one.status.is_connected)
        assert one.status.problems == ["1 of 2 workers do not serve yet, or have died and are being replaced"]
        assert one.warnings == ["the queue fills"]
        async with host.worker() as (other, _):
            await eventually_async(lambda: one.status == other.status == host.journal_source.status)
            host.journal_source.status = TailStatus(problems=["PostgreSQL does not answer"])
            host.relay.send_status()
            await eventually_async(lambda: one.status == other.status == host.journal_source.status)
        await eventually_async(lambda: len(one.status.problems) == 2)


async def test_tail_is_notified_once_of_clients_that_subscribe_together() -> None:
    host, notified = Host(1), []
    host.relay.on_subscribe(lambda: notified.append(True))
    async with host.worker() as (_, hub):
        found = [host.relay.has_subscribers]
        for _ in range(5):
            hub.notify_subscribed()
        await eventually_async(lambda: notified)
        assert len(notified) == 1
        found.append(host.relay.has_subscribers)
        await host.relay.collect_metrics()
        found.append(host.relay.has_subscribers)
    assert found == [False, True, False]


async def test_output_goes_to_workers_that_watch_its_run() -> None:
    host = Host(2)
    async with host.worker() as (_, watching), host.worker() as (_, other):
        assert not host.relay.wants_output_of(WITHOUT_BODY)
        watching.watched.add(RUN)
        watching.notify_run_watched(RUN)
        await eventually_async(lambda: host.relay.wants_output_of(WITHOUT_BODY))
        assert not host.relay.wants_output_of(WITHOUT_BODY._replace(run_id="another"))
        host.relay.dispatch([TRANSITION, OUTPUT], POSITION, TIMING)
        await eventually_async(lambda: watching.received == [("dispatch", [TRANSITION, OUTPUT], POSITION, TIMING)])
        await eventually_async(lambda: other.received == [("dispatch", [TRANSITION, WITHOUT_BODY], POSITION, TIMING)])
        watching.watched.clear()
        await host.relay.collect_metrics()
        assert not host.relay.wants_output_of(WITHOUT_BODY)
    assert host.run_store.reads == []


async def test_output_goes_to_workers_with_a_filter_that_matches() -> None:
    host = Host(1)
    async with host.worker() as (_, hub):
        hub.filters = {Filter(dag_ids=frozenset({"chat"}), types=frozenset({"chunk"}))}
        hub.notify_subscribed()
        await eventually_async(lambda: host.relay.wants_output_of(WITHOUT_BODY))
        assert not host.relay.wants_output_of(WITHOUT_BODY._replace(dag_id="another"))
        hub.filters = set()
        await host.relay.collect_metrics()
        assert not host.relay.wants_output_of(WITHOUT_BODY)


async def test_worker_reads_output_that_was_sent_before_its_run_was_watched() -> None:
    host = Host(1)
    async with host.worker() as (_, hub):
        # The message that the run is watched is on its way.
        hub.watched.add(RUN)
        host.relay.dispatch([WITHOUT_BODY, TRANSITION], POSITION, TIMING)
        await eventually_async(lambda: hub.received == [("dispatch", [OUTPUT, TRANSITION], POSITION, TIMING)])
    assert host.run_store.reads == [[OUTPUT.seq]]


@pytest.mark.parametrize("fault", ["is_failing", "is_hanging"])
async def test_clients_are_reset_if_missing_output_cannot_be_read(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_client, "OUTPUT_READ_SECONDS", 0.1)
    host = Host(1)
    host.relay.start(POSITION)
    setattr(host.run_store, fault, True)
    async with host.worker() as (_, hub):
        hub.watched.add(RUN)
        host.relay.dispatch([WITHOUT_BODY], LATER, TIMING)
        expected = [
            ("start", POSITION),
            ("dispatch", [WITHOUT_BODY], LATER, TIMING),
            ("resync", LATER, "transitions_lost"),
        ]
        await eventually_async(lambda: hub.received == expected)


def calls(families: list[MetricFamily]) -> float:
    (found,) = [family for family in families if family.name == "calls"]
    return sum(sample.value for sample in found.samples if sample.name == "calls_total")


async def test_any_worker_has_the_metrics_of_all_also_of_those_that_have_ended() -> None:
    host = Host(2)
    async with host.worker(calls=1) as (one, _):
        async with host.worker(calls=20) as (other, _):
            assert await asyncio.gather(*map(calls_of, (one, other, one))) == [121, 121, 121]
        assert await calls_of(one) == 121


async def calls_of(worker: RelayClient) -> float:
    return calls(await worker.collect_metrics())


async def test_worker_that_sends_nothing_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "WORKER_TIMEOUT_SECONDS", 0.05)
    host = Host(1)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(TimeoutError):
        await host.relay.serve_worker(await Channel.open(ours, FromWorker))


async def test_worker_reports_that_the_other_process_has_ended() -> None:
    ours, theirs = socket.socketpair()
    worker = RelayClient(
        theirs, cast("Hub", HubDouble()), cast("Any", RunStoreDouble()), cast("Metrics", MetricsDouble(0))
    )
    running = asyncio.create_task(worker.run())
    ours.close()
    await eventually_async(lambda: worker.status.problems == ["the process that follows the journal has ended"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_worker_has_metrics_before_its_channel_is_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = RelayClient(
            theirs, cast("Hub", HubDouble()), cast("Any", RunStoreDouble()), cast("Metrics", MetricsDouble(7))
        )
        assert await calls_of(worker) == 7


WITHOUT_RUN: Any = TRANSITION._replace(dag_id=cast("str", None), run_id=cast("str", None))
"""A message with it cannot be decoded."""


class Unknown(WorkerMessage, frozen=True, tag="unknown"):
    """A message that neither end knows."""


async def test_message_that_cannot_be_decoded_causes_a_resync(caplog: pytest.LogCaptureFixture) -> None:
    host = Host(1)
    host.relay.start(POSITION)
    async with host.worker() as (worker, hub):
        host.relay.dispatch([TRANSITION, WITHOUT_RUN], LATER, TIMING)
        resynced = [("start", POSITION), ("resync", LATER, "transitions_lost")]
        await eventually_async(lambda: hub.received == resynced)
        host.relay.dispatch([TRANSITION], LATER, None)
        await eventually_async(lambda: hub.received == [*resynced, ("dispatch", [TRANSITION], LATER, None)])
        assert host.worker_metrics[0].failed_messages == 1
        assert worker.status.is_connected
    assert [record.getMessage() for record in caplog.records] == [
        "Skipped a message of the process that follows the journal; clients are reset"
    ]


async def test_workers_resync_at_a_limited_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecodable_rows, "RESYNC_SECONDS", 0.5)
    host = Host(1)
    host.relay.start(POSITION)
    async with host.worker() as (_, hub):
        for _ in range(50):
            host.relay.dispatch([WITHOUT_RUN], POSITION, TIMING)
        resync = ("resync", POSITION, "transitions_lost")
        await eventually_async(lambda: host.worker_metrics[0].failed_messages == 50)
        await eventually_async(lambda: hub.received == [("start", POSITION), resync, resync])


async def test_error_of_the_hub_causes_a_resync_of_its_worker() -> None:
    host = Host(2)
    host.relay.start(POSITION)
    async with host.worker() as (_, faulty), host.worker() as (_, sound):
        faulty.is_failing = True
        host.relay.dispatch([TRANSITION], POSITION, TIMING)
        await eventually_async(lambda: ("resync", POSITION, "transitions_lost") in faulty.received)
        faulty.is_failing = False
        dispatched = ("dispatch", [TRANSITION], POSITION, TIMING)
        host.relay.dispatch([TRANSITION], POSITION, TIMING)
        await eventually_async(lambda: faulty.received[-1] == dispatched)
        await eventually_async(lambda: sound.received == [("start", POSITION), dispatched, dispatched])
        assert [metrics.failed_messages for metrics in host.worker_metrics] == [1, 0]


async def test_worker_is_served_after_a_message_that_cannot_be_decoded() -> None:
    host = Host(1)
    async with host.worker(calls=1) as (worker, _):
        assert worker._channel is not None
        worker._channel.send(Unknown())
        assert await calls_of(worker) == 101
        assert host.relay.serving_count == 1
    assert host.metrics.failed_messages == 1
