"""Writing frames through the `send` of an ASGI server, which waits while its client is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest

from stream_server.http.delivery.scheduler import (
    CLOSE_TIMEOUT_PINGS,
    MAX_WRITES_PER_TURN,
    JoinedFrames,
    TransportStatistics,
    WriteScheduler,
)
from stream_server.http.delivery.writers import AsgiWriter, join_frames, pack_frames
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import End, Reset
from stream_server.protocol.wire import PING, Wire
from support.waiting import eventually_async

FOREVER = 3600.0


def make_scheduler(ping_interval: float = FOREVER, max_age: float | None = None) -> WriteScheduler:
    return WriteScheduler(asyncio.get_running_loop(), ping_interval, max_age)


def frame(name: str) -> Wire:
    return Wire(Reset(dag_id=name, run_id="", reason="cleared"))


def encode_json(wire: Wire) -> bytes:
    return wire.json


def end() -> Wire:
    return Wire(End(dag_id="", run_id="", state="success", outcome="none"))


class Client:
    """A client of an ASGI server, as the application sees it."""

    def __init__(self, scheduler: WriteScheduler | None = None) -> None:
        self.subscription = Subscription(10_000)
        self.reads = asyncio.Event()
        self.reads.set()
        self.disconnects = asyncio.Event()
        self.fails: Exception | None = None
        self.sent: list[list[Wire]] = []
        self.scheduler = scheduler or make_scheduler()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[asyncio.Future[bool]]:
        writer = AsgiWriter(
            self.subscription,
            self.scheduler,
            encode_json,
            self._send,
            self._wait_for_disconnect(),
            pack=pack_frames,
            transport="sse",
        )
        with writer.run() as finished:
            yield finished

    async def _send(self, wires: Sequence[Wire]) -> None:
        await self.reads.wait()
        if self.fails is not None:
            raise self.fails
        self.sent.append(list(wires))

    async def _wait_for_disconnect(self) -> None:
        await self.disconnects.wait()


async def run_due_callbacks() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_frames_due_in_one_turn_are_written_together() -> None:
    client, wires = Client(), [frame("a"), frame("b"), frame("c")]
    async with client.served():
        for wire in wires:
            client.subscription.push([wire])
        await run_due_callbacks()
        assert client.sent == [wires]


async def test_frames_due_at_the_start_are_written_at_once() -> None:
    client, wire = Client(), frame("a")
    client.subscription.push([wire])
    async with client.served():
        assert client.sent == [[wire]]


async def test_clients_due_the_same_frames_share_the_joined_bytes() -> None:
    scheduler, written = make_scheduler(), list[bytes]()
    subscriptions = [Subscription(10_000) for _ in range(3)]

    def pack_bytes(_wires: Sequence[Wire], data: bytes) -> bytes:
        written.append(data)
        return data

    async def send(_data: bytes) -> None:
        pass

    same = [frame("a"), frame("b")]
    with ExitStack() as stack:
        for subscription in subscriptions:
            disconnect = asyncio.Event().wait()
            writer = AsgiWriter(
                subscription, scheduler, encode_json, send, disconnect, pack=pack_bytes, transport="sse"
            )
            stack.enter_context(writer.run())
        for subscription, wires in zip(subscriptions, (same, same, [frame("c"), frame("d")]), strict=True):
            subscription.push(wires)
        await run_due_callbacks()
    first, second, other = written
    assert first is second
    assert first == b"".join(wire.json for wire in same)
    assert other != first


def test_joined_bytes_are_kept_for_one_client_only() -> None:
    joined = JoinedFrames()
    for _ in range(100):
        join_frames([frame("a"), frame("b")], encode_json, joined)
    assert len(joined) == 1


async def test_sending_starts_no_tasks_while_clients_read() -> None:
    scheduler = make_scheduler()
    clients = [Client(scheduler) for _ in range(2 * MAX_WRITES_PER_TURN + 1)]
    waiting = []
    for client in clients:
        context = client.served()
        await context.__aenter__()
        waiting.append(context)
    await run_due_callbacks()
    tasks = len(asyncio.all_tasks())
    wire = frame("a")
    for client in clients:
        client.subscription.push([wire])
    await eventually_async(lambda: all(client.sent for client in clients))
    assert len(asyncio.all_tasks()) == tasks
    assert all(client.sent == [[wire]] for client in clients)
    for context in waiting:
        await context.__aexit__(None, None, None)


async def test_slow_client_delays_no_other_and_gets_the_rest_when_it_reads() -> None:
    scheduler = make_scheduler()
    slow, other = Client(scheduler), Client(scheduler)
    wires = [frame(name) for name in "abc"]
    async with slow.served(), other.served():
        slow.reads.clear()
        for wire in wires:
            slow.subscription.push([wire])
            other.subscription.push([wire])
            await run_due_callbacks()
        assert (slow.sent, other.sent) == ([], [[wire] for wire in wires])
        slow.reads.set()
        await eventually_async(lambda: len(slow.sent) == 2)
        assert slow.sent == [[wires[0]], wires[1:]]


async def test_writer_finishes_when_the_last_frame_was_sent() -> None:
    client, last = Client(), end()
    async with client.served() as finished:
        client.reads.clear()
        client.subscription.push([last])
        await run_due_callbacks()
        assert not finished.done()
        client.reads.set()
        assert await asyncio.wait_for(finished, 10)
        assert client.sent == [[last]]


async def test_writer_sends_the_close_frame_before_it_finishes() -> None:
    client = Client()
    async with client.served() as finished:
        client.subscription.disconnect(CloseCode.DRAINING, "bye")
        assert await asyncio.wait_for(finished, 10)
    assert [wire.type for wire in client.sent[0]] == ["close"]


@pytest.mark.parametrize("slow", [False, True])
async def test_writer_finishes_when_sending_fails(slow: bool) -> None:
    client = Client()
    async with client.served() as finished:
        client.fails = OSError("gone")
        if slow:
            client.reads.clear()
        client.subscription.push([frame("a")])
        await run_due_callbacks()
        client.reads.set()
        assert not await asyncio.wait_for(finished, 10)
        client.subscription.push([frame("b")])
        await run_due_callbacks()
    assert client.sent == []


async def test_send_may_return_any_awaitable() -> None:
    scheduler, sent = make_scheduler(), list[asyncio.Future[None]]()
    subscription, disconnects = Subscription(10_000), asyncio.Event()

    def send(_wires: Sequence[Wire]) -> asyncio.Future[None]:
        sent.append(asyncio.get_running_loop().create_future())
        return sent[-1]

    async def wait_for_disconnect() -> None:
        await disconnects.wait()

    with AsgiWriter(
        subscription,
        scheduler,
        encode_json,
        send,
        wait_for_disconnect(),
        pack=pack_frames,
        transport="sse",
    ).run():
        for number in range(3):
            subscription.push([frame("a")])
            await run_due_callbacks()
            assert len(sent) == number + 1
            sent[-1].set_result(None)
            await run_due_callbacks()


async def test_error_of_one_writer_leaves_the_others_running() -> None:
    scheduler = make_scheduler()
    broken, other, wire = Client(scheduler), Client(scheduler), frame("a")

    class Broken(AsgiWriter[Sequence[Wire]]):
        def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
            raise RuntimeError("the handler is closed")

    writer = Broken(
        broken.subscription,
        scheduler,
        encode_json,
        broken._send,
        broken._wait_for_disconnect(),
        pack=pack_frames,
        transport="sse",
    )
    with writer.run() as finished:
        async with other.served():
            for client in (broken, other):
                client.subscription.push([wire])
            assert not await asyncio.wait_for(finished, 10)
            assert other.sent == [[wire]]


async def test_writer_finishes_when_the_client_disconnects() -> None:
    client = Client()
    async with client.served() as finished:
        client.disconnects.set()
        assert not await asyncio.wait_for(finished, 10)


async def test_ping_is_sent_after_an_interval_without_frames() -> None:
    scheduler = make_scheduler(ping_interval=0.2)
    quiet, busy = Client(scheduler), Client(scheduler)
    wire = frame("a")
    async with quiet.served(), busy.served():

        def push_until_done() -> bool:
            busy.subscription.push([wire])
            return quiet.sent == [[PING]] * 3

        await eventually_async(push_until_done)
    assert [PING] not in busy.sent


async def test_scheduler_stops_its_timer_after_the_last_client() -> None:
    client = Client(make_scheduler(ping_interval=0.2))
    async with client.served() as finished:
        client.disconnects.set()
        await finished
    assert client.scheduler._timer is None
    await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_sent_frames_are_counted_by_transport() -> None:
    scheduler = make_scheduler()
    client, other, wires = Client(scheduler), Client(scheduler), [frame("a"), frame("b")]
    async with client.served(), other.served():
        other.reads.clear()
        for one in (client, other):
            one.subscription.push(wires)
        await run_due_callbacks()
        size = sum(len(wire.json) for wire in wires)
        assert scheduler.statistics()["sse"] == TransportStatistics(connections=2, frames=4, bytes=size, unsent=0)
        other.reads.set()
        await eventually_async(lambda: scheduler.statistics()["sse"].bytes == 2 * size)
        with scheduler.counters["result"].count_waiting():
            assert scheduler.statistics()["result"] == TransportStatistics(connections=1, frames=0, bytes=0, unsent=0)
    assert {one.connections for one in scheduler.statistics().values()} == {0}


async def test_statistics_look_at_no_connection_that_has_sent_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler()
    client = Client(scheduler)
    async with client.served():
        client.subscription.push([frame("a")])
        await run_due_callbacks()
        scheduler.statistics()
        looks: list[object] = []
        monkeypatch.setattr(AsgiWriter, "unsent_bytes", looks.append)
        assert scheduler.statistics()["sse"].connections == 1
    assert looks == []


async def test_callback_runs_when_all_due_frames_were_written() -> None:
    scheduler, calls = make_scheduler(), list[int]()
    clients = [Client(scheduler) for _ in range(MAX_WRITES_PER_TURN + 1)]
    async with AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client.served())
        await run_due_callbacks()
        scheduler.call_when_written(lambda: calls.append(-1))
        for client in clients:
            client.subscription.push([frame("a")])
        scheduler.call_when_written(lambda: calls.append(sum(bool(client.sent) for client in clients)))
        await eventually_async(lambda: calls)
    assert calls == [MAX_WRITES_PER_TURN + 1], "writing takes two turns; no frame was due to the first callback"


async def test_connection_is_closed_when_it_reaches_its_age() -> None:
    scheduler = make_scheduler(ping_interval=0.2, max_age=0.4)
    clients = [Client(scheduler) for _ in range(40)]
    began = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(client.served()) for client in clients]
        ages = [one.expires_at - began for slot in scheduler._wheel for one in slot]
        assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [True] * len(clients)
    assert 0.36 <= min(ages) < max(ages)
    assert max(ages) - min(ages) > 0.01, "the connections are not all closed at once"
    for client in clients:
        closed = client.subscription.closed
        assert closed is not None
        assert (closed.code, closed.reconnect) == (CloseCode.AGED, True)
        assert client.sent[-1][-1].frame == closed


async def test_connection_with_traffic_is_closed_at_its_age() -> None:
    client = Client(make_scheduler(ping_interval=0.2, max_age=0.3))
    async with client.served() as finished:

        def push_until_done() -> bool:
            client.subscription.push([frame("a")])
            return finished.done()

        await eventually_async(push_until_done)
    assert client.subscription.closed is not None


async def test_client_that_never_reads_its_close_frame_is_aborted() -> None:
    scheduler = make_scheduler(ping_interval=0.05)
    stuck, slow = Client(scheduler), Client(scheduler)
    async with stuck.served() as stuck_finished, slow.served() as finished:
        for client in (stuck, slow):
            client.reads.clear()
            client.subscription.push([frame("a")])
            await run_due_callbacks()
            client.subscription.disconnect(CloseCode.SLOW, "slow")
        slow.reads.set()
        assert await asyncio.wait_for(finished, 10), "the slow client reads the close frame in the end"
        assert not await asyncio.wait_for(stuck_finished, 10)
    assert [len(wires) for wires in slow.sent] == [1, 1]
    assert stuck.sent == []


async def test_slow_client_is_not_aborted_while_its_stream_goes_on() -> None:
    client = Client(make_scheduler(ping_interval=0.01))
    async with client.served() as finished:
        client.reads.clear()
        client.subscription.push([frame("a")])
        ticks = Client(client.scheduler)
        async with ticks.served():
            await eventually_async(lambda: len(ticks.sent) > 2 * CLOSE_TIMEOUT_PINGS)
        assert not finished.done()
        client.reads.set()
        await eventually_async(lambda: client.sent)
