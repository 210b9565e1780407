"""Many streams that share a connection."""

from __future__ import annotations

import asyncio
import json

from stream_server.http.delivery.multiplex_queue import MAX_REPLIES, MultiplexQueue
from stream_server.http.endpoints import websocket
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Ack, End, Reset
from stream_server.protocol.wire import Wire


def frame(name: str) -> Wire:
    return Wire(Reset(dag_id=name, run_id="", reason="cleared"))


def ack(name: str = "a") -> Wire:
    return Wire(Ack(op="ping", id=name))


class Desk:
    """A bundle, and what it says."""

    def __init__(self) -> None:
        self.over: list[str] = []
        self.rung = 0
        self.bundle = MultiplexQueue(self.over.append)
        self.bundle.on_due(self._ring)

    def stream(self, name: str) -> Subscription:
        subscription = Subscription(10_000)
        self.bundle.add(name, subscription)
        return subscription

    def taken(self) -> list[tuple[str, str]]:
        frames = [json.loads(wire.text) for wire in self.bundle.take()]
        return [(one["type"], one["id"]) for one in frames]

    def _ring(self) -> None:
        self.rung += 1


async def test_frames_bear_the_names_of_their_streams_and_answers_come_first() -> None:
    desk = Desk()
    one, other = desk.stream("a"), desk.stream('"ö')
    other.push([frame("x")])
    one.push([frame("x"), frame("y")])
    await desk.bundle.reply(ack("p"))
    assert desk.rung == 3
    assert desk.taken() == [("ack", "p"), ("reset", '"ö'), ("reset", "a"), ("reset", "a")]
    assert desk.taken() == []


async def test_a_frame_is_framed_once_for_all_who_call_their_stream_the_same() -> None:
    wire, desks = frame("x"), [Desk(), Desk()]
    for desk in desks:
        desk.stream("a").push([wire])
    (first,), (second,) = (desk.bundle.take() for desk in desks)
    assert first.framed(websocket.encode_text_message) is second.framed(websocket.encode_text_message)
    assert first.framed(websocket.encode_text_message).endswith(b',"id":"a"}')
    assert b'"id"' not in wire.framed(websocket.encode_text_message)


async def test_a_stream_that_has_ended_is_let_go() -> None:
    desk = Desk()
    desk.stream("a").push([Wire(End(dag_id="", run_id="", state="success", outcome="none"))])
    assert desk.over == []
    assert desk.taken() == [("end", "a")]
    assert desk.over == ["a"]
    desk.stream("a").push([frame("x")])
    assert desk.taken() == [("reset", "a")]


async def test_what_was_due_of_a_stream_that_was_left_is_forgotten() -> None:
    desk = Desk()
    stream = desk.stream("a")
    stream.push([frame("x")])
    desk.bundle.remove("a")
    stream.push([frame("y")])
    assert desk.taken() == []


async def test_a_stream_that_grows_too_fast_ends_alone() -> None:
    desk = Desk()
    fast, other = desk.stream("a"), desk.stream("b")
    for _ in range(2):
        fast.push([frame("x" * 6_000)])
    other.push([frame("y")])
    assert desk.taken() == [("close", "a"), ("reset", "b")]
    assert (desk.over, desk.bundle.is_complete) == (["a"], False)
    other.push([frame("z")])
    assert desk.taken() == [("reset", "b")]


async def test_all_streams_tell_why_the_connection_ends() -> None:
    desk = Desk()
    desk.stream("a").push([frame("x")])
    desk.bundle.disconnect(CloseCode.AGED, "old")
    desk.bundle.disconnect(CloseCode.DRAINING, "too late to matter")
    desk.stream("b")
    assert desk.bundle.is_complete
    assert desk.bundle.closed is not None
    assert (desk.bundle.closed.code, desk.bundle.closed.reconnect) == (CloseCode.AGED, True)
    assert desk.taken() == [("reset", "a"), ("close", "a"), ("close", "b")]
    assert desk.over == ["a", "b"]


async def test_who_reads_no_answers_is_not_heard_for_ever() -> None:
    desk = Desk()
    for _ in range(MAX_REPLIES):
        await desk.bundle.reply(ack())
    waiting = asyncio.create_task(desk.bundle.reply(ack("later")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(desk.taken()) == MAX_REPLIES
    await asyncio.wait_for(waiting, 10)
    assert desk.taken() == [("ack", "later")]
