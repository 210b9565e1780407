"""What one process tells its workers, over real sockets between real event loops' ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Counter

from stream_server.domain.transition import ReadTiming, Transition, TransitionKind
from stream_server.hub.hub import Hub
from stream_server.journal import undecodable_rows as undecodable
from stream_server.journal.tail import TailStatus
from stream_server.protocol.cursor import JournalPosition, JournalRow
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily, collect_registry
from stream_server.server.metrics import Metrics
from stream_server.server.workers import relay as relay_module
from stream_server.server.workers.channel import Channel
from stream_server.server.workers.messages import FromWorker, WorkerMessage
from stream_server.server.workers.relay import Relay
from stream_server.server.workers.relay_client import RelayClient
from support.waiting import eventually_async

CURSOR = JournalPosition("ab12", 5, 9, (5, 7), JournalRow(3, 1_000_000))
READ = ReadTiming(0.002, 12.5)
AT = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=timezone.utc)
TRANSITION = Transition(3, 8, AT, TransitionKind.TASK, "chat", "r1", "answer", 2, 1, "running", "queued", start_date=AT)


class HubDouble:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.has_subscribers = False
        self.watch: Callable[[], object] = list
        self.failing = False

    def on_subscribe(self, call: Callable[[], object]) -> None:
        self.watch = call

    def start(self, cursor: JournalPosition) -> None:
        self.told.append(("begin", cursor))

    def dispatch(self, transitions: list[Transition], cursor: JournalPosition, read: ReadTiming | None) -> None:
        if self.failing:
            raise RuntimeError("no state")
        self.told.append(("dispatch", transitions, cursor, read))

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        self.told.append(("anew", cursor, reason))

    async def reconnect(self, cursor: JournalPosition) -> None:
        await asyncio.sleep(0)
        self.told.append(("reconnect", cursor))


class Counting:
    """The metrics of a process that has counted so many calls."""

    def __init__(self, calls: int) -> None:
        self.registry = CollectorRegistry()
        Counter("calls", "Calls.", registry=self.registry).inc(calls)
        self.failed = 0

    def collect(self) -> list[MetricFamily]:
        return collect_registry(self.registry)

    def message_failed(self) -> None:
        self.failed += 1


class Upstream:
    """The duties of the process with the relay."""

    def __init__(self) -> None:
        self.status = TailStatus(is_connected=True, receives_notifications=True, problems=[])
        self.warnings: list[str] = ["the queue fills"]

    async def run(self) -> None:
        """Do nothing."""

    async def collect_metrics(self) -> list[MetricFamily]:
        return Counting(100).collect()


class Refreshed:
    """The connections of the process with the relay."""

    def __init__(self) -> None:
        self.times = 0

    async def reconnect(self) -> None:
        self.times += 1


class Desk:
    """A relay, and the ends of its workers."""

    def __init__(self, wanted: int) -> None:
        self.runs = Refreshed()
        self.metrics = Counting(0)
        self.worker_metrics: list[Counting] = []
        """The metrics of the workers, in the order of their start."""

        self.relay = Relay(cast("Any", self.runs), wanted, self.metrics.message_failed)
        self.upstream = Upstream()
        self.relay.attach(self.upstream)

    @asynccontextmanager
    async def worker(self, calls: int = 0) -> AsyncIterator[tuple[RelayClient, HubDouble]]:
        ours, theirs = socket.socketpair()
        hub = HubDouble()
        self.worker_metrics.append(Counting(calls))
        worker = RelayClient(theirs, cast("Hub", hub), cast("Metrics", self.worker_metrics[-1]))
        channel: Channel[FromWorker] = await Channel.open(ours, FromWorker)
        serving = self.relay.serving_count
        tasks = [asyncio.create_task(self.relay.serve_worker(channel)), asyncio.create_task(worker.run())]
        await eventually_async(lambda: self.relay.serving_count == serving + 1)
        try:
            yield worker, hub
        finally:
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_workers_hear_what_the_tail_says_in_its_order() -> None:
    desk = Desk(2)
    async with desk.worker() as (_, one), desk.worker() as (_, other):
        desk.relay.start(CURSOR)
        desk.relay.dispatch([TRANSITION, TRANSITION], CURSOR, READ)
        await desk.relay.reconnect(CURSOR)
        desk.relay.resync(CURSOR, "journal_changed")
        desk.relay.dispatch([], CURSOR, None)
        told = [
            ("begin", CURSOR),
            ("dispatch", [TRANSITION, TRANSITION], CURSOR, READ),
            ("reconnect", CURSOR),
            ("anew", CURSOR, "journal_changed"),
            ("dispatch", [], CURSOR, None),
        ]
        await eventually_async(lambda: one.told == other.told == told)
    assert desk.runs.times == 1


async def test_who_comes_later_begins_where_the_tail_is() -> None:
    desk = Desk(1)
    desk.relay.start(CURSOR)
    later = JournalPosition("ab12", 9, 10)
    desk.relay.dispatch([TRANSITION], later, READ)
    async with desk.worker() as (_, hub):
        desk.relay.dispatch([], later, None)
        await eventually_async(lambda: hub.told == [("begin", later), ("dispatch", [], later, None)])


async def test_workers_know_how_the_tail_and_all_of_them_are_doing() -> None:
    desk = Desk(2)
    async with desk.worker() as (one, _):
        await eventually_async(lambda: one.status.is_connected)
        assert one.status.problems == ["1 of 2 workers do not serve yet, or have died and are being replaced"]
        assert one.warnings == ["the queue fills"]
        async with desk.worker() as (other, _):
            await eventually_async(lambda: one.status == other.status == desk.upstream.status)
            desk.upstream.status = TailStatus(problems=["PostgreSQL does not answer"])
            desk.relay.send_status()
            await eventually_async(lambda: one.status == other.status == desk.upstream.status)
        await eventually_async(lambda: len(one.status.problems) == 2)


async def test_the_tail_is_told_who_watches() -> None:
    desk, rung = Desk(1), []
    desk.relay.on_subscribe(lambda: rung.append(True))
    async with desk.worker() as (_, hub):
        seen = [desk.relay.has_subscribers]
        for _ in range(5):
            hub.watch()
        await eventually_async(lambda: rung)
        assert len(rung) == 1, "many who come at once are told of once"
        seen.append(desk.relay.has_subscribers)
        await desk.relay.collect_metrics()
        seen.append(desk.relay.has_subscribers)
    assert seen == [False, True, False]


def calls(families: list[MetricFamily]) -> float:
    (found,) = [family for family in families if family.name == "calls"]
    return sum(figure.value for figure in found.samples if figure.name == "calls_total")


async def test_any_worker_tells_what_all_have_counted_and_those_that_are_gone() -> None:
    desk = Desk(2)
    async with desk.worker(calls=1) as (one, _):
        async with desk.worker(calls=20) as (other, _):
            assert await asyncio.gather(*map(calls_of, (one, other, one))) == [121, 121, 121]
        assert await calls_of(one) == 121


async def calls_of(worker: RelayClient) -> float:
    return calls(await worker.collect_metrics())


async def test_who_is_silent_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "WORKER_TIMEOUT_SECONDS", 0.05)
    desk = Desk(1)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(TimeoutError):
        await desk.relay.serve_worker(await Channel.open(ours, FromWorker))


async def test_a_worker_whose_other_process_is_gone_says_so() -> None:
    ours, theirs = socket.socketpair()
    worker = RelayClient(theirs, cast("Hub", HubDouble()), cast("Metrics", Counting(0)))
    running = asyncio.create_task(worker.run())
    ours.close()
    await eventually_async(lambda: worker.status.problems == ["the process that follows the journal is gone"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


WITHOUT_RUN: Any = TRANSITION._replace(dag_id=cast("str", None), run_id=cast("str", None))
"""A message with it cannot be decoded."""


class Unknown(WorkerMessage, frozen=True, tag="unknown"):
    """A message that neither end knows."""


async def test_a_message_that_cannot_be_decoded_costs_its_worker_a_resync(caplog: pytest.LogCaptureFixture) -> None:
    desk, later = Desk(1), JournalPosition("ab12", 9, 10)
    desk.relay.start(CURSOR)
    async with desk.worker() as (worker, hub):
        desk.relay.dispatch([TRANSITION, WITHOUT_RUN], later, READ)
        resynced = [("begin", CURSOR), ("anew", later, "transitions_lost")]
        await eventually_async(lambda: hub.told == resynced)
        desk.relay.dispatch([TRANSITION], later, None)
        await eventually_async(lambda: hub.told == [*resynced, ("dispatch", [TRANSITION], later, None)])
        assert desk.worker_metrics[0].failed == 1
        assert worker.status.is_connected
    assert [record.getMessage() for record in caplog.records] == [
        "Skipped a message of the process that follows the journal; clients are resynced"
    ]


async def test_workers_resync_at_a_limited_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecodable, "RESYNC_SECONDS", 0.5)
    desk = Desk(1)
    desk.relay.start(CURSOR)
    async with desk.worker() as (_, hub):
        for _ in range(50):
            desk.relay.dispatch([WITHOUT_RUN], CURSOR, READ)
        anew = ("anew", CURSOR, "transitions_lost")
        await eventually_async(lambda: desk.worker_metrics[0].failed == 50)
        await eventually_async(lambda: hub.told == [("begin", CURSOR), anew, anew])


async def test_an_error_of_the_hub_costs_its_worker_a_resync() -> None:
    desk = Desk(2)
    desk.relay.start(CURSOR)
    async with desk.worker() as (_, faulty), desk.worker() as (_, sound):
        faulty.failing = True
        desk.relay.dispatch([TRANSITION], CURSOR, READ)
        await eventually_async(lambda: ("anew", CURSOR, "transitions_lost") in faulty.told)
        faulty.failing = False
        dispatched = ("dispatch", [TRANSITION], CURSOR, READ)
        desk.relay.dispatch([TRANSITION], CURSOR, READ)
        await eventually_async(lambda: faulty.told[-1] == dispatched)
        await eventually_async(lambda: sound.told == [("begin", CURSOR), dispatched, dispatched])
        assert [metrics.failed for metrics in desk.worker_metrics] == [1, 0]


async def test_a_worker_is_served_on_after_a_message_that_cannot_be_decoded() -> None:
    desk = Desk(1)
    async with desk.worker(calls=1) as (worker, _):
        assert worker._channel is not None
        worker._channel.send(Unknown())
        assert await calls_of(worker) == 101
        assert desk.relay.serving_count == 1
    assert desk.metrics.failed == 1
