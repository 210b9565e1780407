"""Deliveries over any ASGI server, which is what they are given: a `send` that waits where the client is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from stream_server.http.delivery.pump import PING
from stream_server.http.delivery.scheduler import (
    CLOSE_TIMEOUT_PINGS,
    MAX_WRITES_PER_TURN,
    JoinedFrames,
    TransportStatistics,
    WriteScheduler,
)
from stream_server.http.delivery.writers import AsgiWriter, pack_frames
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import End, Reset
from stream_server.protocol.wire import Wire
from support.waiting import eventually_async

FOREVER = 3600.0


def courier(silence: float = FOREVER, age: float | None = None) -> WriteScheduler:
    return WriteScheduler(asyncio.get_running_loop(), silence, age)


def frame(name: str) -> Wire:
    return Wire(Reset(dag_id=name, run_id="", reason="cleared"))


def in_json(wire: Wire) -> bytes:
    return wire.json


def end() -> Wire:
    return Wire(End(dag_id="", run_id="", state="success", outcome="none"))


class Client:
    """Somebody behind an ASGI server."""

    def __init__(self, mail: WriteScheduler | None = None) -> None:
        self.subscription = Subscription(10_000)
        self.reads = asyncio.Event()
        self.reads.set()
        self.leaves = asyncio.Event()
        self.fails: Exception | None = None
        self.sent: list[list[Wire]] = []
        self.mail = mail or courier()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[asyncio.Future[bool]]:
        delivery = AsgiWriter(
            self.subscription, self.mail, in_json, self._send, self._left(), pack=pack_frames, transport="sse"
        )
        with delivery.run() as over:
            yield over

    async def _send(self, wires: Sequence[Wire]) -> None:
        await self.reads.wait()
        if self.fails is not None:
            raise self.fails
        self.sent.append(list(wires))

    async def _left(self) -> None:
        await self.leaves.wait()


async def turn() -> None:
    """Let the event loop do what is due."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_becomes_due_in_one_turn_goes_out_in_one_write() -> None:
    client, wires = Client(), [frame("a"), frame("b"), frame("c")]
    async with client.served():
        for wire in wires:
            client.subscription.push([wire])
        await turn()
        assert client.sent == [wires]


async def test_what_was_due_before_goes_out_at_once() -> None:
    client, wire = Client(), frame("a")
    client.subscription.push([wire])
    async with client.served():
        assert client.sent == [[wire]]


async def test_sending_takes_no_task_while_clients_read() -> None:
    mail = courier()
    clients = [Client(mail) for _ in range(2 * MAX_WRITES_PER_TURN + 1)]
    waiting = []
    for client in clients:
        context = client.served()
        await context.__aenter__()
        waiting.append(context)
    await turn()
    tasks = len(asyncio.all_tasks())
    wire = frame("a")
    for client in clients:
        client.subscription.push([wire])
    await eventually_async(lambda: all(client.sent for client in clients))
    assert len(asyncio.all_tasks()) == tasks
    assert all(client.sent == [[wire]] for client in clients)
    for context in waiting:
        await context.__aexit__(None, None, None)


async def test_a_slow_client_delays_nobody_and_gets_the_rest_when_it_reads() -> None:
    mail = courier()
    slow, other = Client(mail), Client(mail)
    wires = [frame(name) for name in "abc"]
    async with slow.served(), other.served():
        slow.reads.clear()
        for wire in wires:
            slow.subscription.push([wire])
            other.subscription.push([wire])
            await turn()
        assert (slow.sent, other.sent) == ([], [[wire] for wire in wires])
        slow.reads.set()
        await eventually_async(lambda: len(slow.sent) == 2)
        assert slow.sent == [[wires[0]], wires[1:]]


async def test_it_is_over_when_the_last_frame_has_been_sent() -> None:
    client, last = Client(), end()
    async with client.served() as over:
        client.reads.clear()
        client.subscription.push([last])
        await turn()
        assert not over.done()
        client.reads.set()
        assert await asyncio.wait_for(over, 10)
        assert client.sent == [[last]]


async def test_a_client_that_is_closed_is_told_why_before_it_is_over() -> None:
    client = Client()
    async with client.served() as over:
        client.subscription.disconnect(CloseCode.DRAINING, "bye")
        assert await asyncio.wait_for(over, 10)
    assert [wire.type for wire in client.sent[0]] == ["close"]


@pytest.mark.parametrize("slow", [False, True])
async def test_a_client_that_is_gone_while_frames_are_sent_is_no_error(slow: bool) -> None:
    client = Client()
    async with client.served() as over:
        client.fails = OSError("gone")
        if slow:
            client.reads.clear()
        client.subscription.push([frame("a")])
        await turn()
        client.reads.set()
        assert not await asyncio.wait_for(over, 10)
        client.subscription.push([frame("b")])
        await turn()
    assert client.sent == []


async def test_what_a_server_returns_for_a_coroutine_will_do() -> None:
    mail, sent = courier(), list[asyncio.Future[None]]()
    subscription, left = Subscription(10_000), asyncio.Event()

    def send(_wires: Sequence[Wire]) -> asyncio.Future[None]:
        sent.append(asyncio.get_running_loop().create_future())
        return sent[-1]

    async def gone() -> None:
        await left.wait()

    with AsgiWriter(subscription, mail, in_json, send, gone(), pack=pack_frames, transport="sse").run():
        for number in range(3):
            subscription.push([frame("a")])
            await turn()
            assert len(sent) == number + 1
            sent[-1].set_result(None)
            await turn()


async def test_a_fault_with_one_client_keeps_nothing_from_the_others() -> None:
    mail = courier()
    broken, other, wire = Client(mail), Client(mail), frame("a")

    class Broken(AsgiWriter[Sequence[Wire]]):
        def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
            raise RuntimeError("the handler is closed")

    delivery = Broken(
        broken.subscription, mail, in_json, broken._send, broken._left(), pack=pack_frames, transport="sse"
    )
    with delivery.run() as over:
        async with other.served():
            for client in (broken, other):
                client.subscription.push([wire])
            assert not await asyncio.wait_for(over, 10)
            assert other.sent == [[wire]]


async def test_a_client_that_leaves_ends_it() -> None:
    client = Client()
    async with client.served() as over:
        client.leaves.set()
        assert not await asyncio.wait_for(over, 10)


async def test_silence_is_broken_and_traffic_postpones_that() -> None:
    mail = courier(silence=0.2)
    quiet, talking = Client(mail), Client(mail)
    wire = frame("a")
    async with quiet.served(), talking.served():

        def talk() -> bool:
            talking.subscription.push([wire])
            return quiet.sent == [[PING]] * 3

        await eventually_async(talk)
    assert [PING] not in talking.sent


async def test_nothing_is_left_when_the_last_client_has_gone() -> None:
    client = Client(courier(silence=0.2))
    async with client.served() as over:
        client.leaves.set()
        await over
    assert client.mail._timer is None
    await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_what_is_sent_is_counted_by_transport() -> None:
    mail = courier()
    client, other, wires = Client(mail), Client(mail), [frame("a"), frame("b")]
    async with client.served(), other.served():
        other.reads.clear()
        for one in (client, other):
            one.subscription.push(wires)
        await turn()
        size = sum(len(wire.json) for wire in wires)
        assert mail.statistics()["sse"] == TransportStatistics(connections=2, frames=4, bytes=size, unsent=0)
        other.reads.set()
        await eventually_async(lambda: mail.statistics()["sse"].bytes == 2 * size)
        with mail.counters["result"].count_waiting():
            assert mail.statistics()["result"] == TransportStatistics(connections=1, frames=0, bytes=0, unsent=0)
    assert {one.connections for one in mail.statistics().values()} == {0}


async def test_what_is_due_is_said_to_have_been_written_when_it_has() -> None:
    mail, said = courier(), list[int]()
    clients = [Client(mail) for _ in range(MAX_WRITES_PER_TURN + 1)]
    async with AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client.served())
        await turn()
        mail.call_when_written(lambda: said.append(-1))
        for client in clients:
            client.subscription.push([frame("a")])
        mail.call_when_written(lambda: said.append(sum(bool(client.sent) for client in clients)))
        await eventually_async(lambda: said)
    assert said == [MAX_WRITES_PER_TURN + 1], "also where that takes several turns; not where nobody is written to"


async def test_a_connection_that_is_old_enough_is_closed_so_that_its_client_comes_again() -> None:
    mail = courier(silence=0.2, age=0.4)
    clients = [Client(mail) for _ in range(40)]
    began = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(client.served()) for client in clients]
        ages = [one.expires_at - began for slot in mail._wheel for one in slot]
        assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [True] * len(clients)
    assert 0.36 <= min(ages) < max(ages)
    assert max(ages) - min(ages) > 0.01, "they don't all come again at once"
    for client in clients:
        closed = client.subscription.closed
        assert closed is not None
        assert (closed.code, closed.reconnect) == (CloseCode.AGED, True)
        assert client.sent[-1][-1].frame == closed


async def test_what_talks_grows_old_all_the_same() -> None:
    client = Client(courier(silence=0.2, age=0.3))
    async with client.served() as over:

        def talk() -> bool:
            client.subscription.push([frame("a")])
            return over.done()

        await eventually_async(talk)
    assert client.subscription.closed is not None


async def test_who_must_go_and_reads_nothing_of_it_is_cut_off_in_the_end() -> None:
    mail = courier(silence=0.05)
    deaf, slow = Client(mail), Client(mail)
    async with deaf.served() as cut_off, slow.served() as over:
        for client in (deaf, slow):
            client.reads.clear()
            client.subscription.push([frame("a")])
            await turn()
            client.subscription.disconnect(CloseCode.SLOW, "slow")
        slow.reads.set()
        assert await asyncio.wait_for(over, 10), "who reads at last is told why"
        assert not await asyncio.wait_for(cut_off, 10)
    assert [len(wires) for wires in slow.sent] == [1, 1]
    assert deaf.sent == []


async def test_who_may_stay_is_not_cut_off_however_slow_it_is() -> None:
    client = Client(courier(silence=0.01))
    async with client.served() as over:
        client.reads.clear()
        client.subscription.push([frame("a")])
        ticks = Client(client.mail)
        async with ticks.served():
            await eventually_async(lambda: len(ticks.sent) > 2 * CLOSE_TIMEOUT_PINGS)
        assert not over.done()
        client.reads.set()
        await eventually_async(lambda: client.sent)
