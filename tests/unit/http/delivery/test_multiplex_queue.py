"""Streams that share a connection."""

from __future__ import annotations

import asyncio
import json

from stream_server.http.delivery.multiplex_queue import MAX_REPLIES, MultiplexQueue
from stream_server.http.delivery.scheduler import JoinedFrames
from stream_server.http.delivery.writers import join_frames
from stream_server.http.endpoints import websocket
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Ack, End, Reset
from stream_server.protocol.wire import Wire


def frame(name: str) -> Wire:
    return Wire(Reset(dag_id=name, run_id="", reason="cleared"))


def ack(name: str = "a") -> Wire:
    return Wire(Ack(op="ping", id=name))


class Connection:
    """A connection with its queue, which records removed streams and notifications."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.notifications = 0
        self.queue = MultiplexQueue(self.removed.append)
        self.queue.on_due(self._notify)

    def stream(self, name: str) -> Subscription:
        subscription = Subscription(10_000)
        self.queue.add(name, subscription)
        return subscription

    def taken(self) -> list[tuple[str, str]]:
        frames = [json.loads(wire.text) for wire in self.queue.take()]
        return [(one["type"], one["id"]) for one in frames]

    def _notify(self) -> None:
        self.notifications += 1


async def test_frames_have_the_id_of_their_stream_and_replies_come_first() -> None:
    connection = Connection()
    one, other = connection.stream("a"), connection.stream('"ö')
    other.push([frame("x")])
    one.push([frame("x"), frame("y")])
    await connection.queue.reply(ack("p"))
    assert connection.notifications == 3
    assert connection.taken() == [("ack", "p"), ("reset", '"ö'), ("reset", "a"), ("reset", "a")]
    assert connection.taken() == []


async def test_a_frame_is_framed_once_for_streams_of_the_same_id() -> None:
    wire, connections = frame("x"), [Connection(), Connection()]
    for connection in connections:
        connection.stream("a").push([wire])
    (first,), (second,) = (connection.queue.take() for connection in connections)
    assert first.framed(websocket.encode_text_message) is second.framed(websocket.encode_text_message)
    assert first.framed(websocket.encode_text_message).endswith(b',"id":"a"}')
    assert b'"id"' not in wire.framed(websocket.encode_text_message)


async def test_an_ended_stream_is_removed() -> None:
    connection = Connection()
    connection.stream("a").push([Wire(End(dag_id="", run_id="", state="success", outcome="none"))])
    assert connection.removed == []
    assert connection.taken() == [("end", "a")]
    assert connection.removed == ["a"]
    connection.stream("a").push([frame("x")])
    assert connection.taken() == [("reset", "a")]


async def test_pending_frames_of_a_removed_stream_are_dropped() -> None:
    connection = Connection()
    stream = connection.stream("a")
    stream.push([frame("x")])
    connection.queue.remove("a")
    stream.push([frame("y")])
    assert connection.taken() == []


async def test_a_slow_stream_is_closed_and_others_continue() -> None:
    connection = Connection()
    fast, other = connection.stream("a"), connection.stream("b")
    for _ in range(2):
        fast.push([frame("x" * 6_000)])
    other.push([frame("y")])
    assert connection.taken() == [("close", "a"), ("reset", "b")]
    assert (connection.removed, connection.queue.is_complete) == (["a"], False)
    other.push([frame("z")])
    assert connection.taken() == [("reset", "b")]


async def test_a_disconnect_sends_a_close_to_every_stream() -> None:
    connection = Connection()
    connection.stream("a").push([frame("x")])
    connection.queue.disconnect(CloseCode.AGED, "old")
    connection.queue.disconnect(CloseCode.DRAINING, "too late to matter")
    connection.stream("b")
    assert connection.queue.is_complete
    assert connection.queue.closed is not None
    assert (connection.queue.closed.code, connection.queue.closed.reconnect) == (CloseCode.AGED, True)
    assert connection.taken() == [("reset", "a"), ("close", "a"), ("close", "b")]
    assert connection.removed == ["a", "b"]


async def test_a_reply_waits_while_earlier_replies_are_not_read() -> None:
    connection = Connection()
    for _ in range(MAX_REPLIES):
        await connection.queue.reply(ack())
    waiting = asyncio.create_task(connection.queue.reply(ack("later")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(connection.taken()) == MAX_REPLIES
    await asyncio.wait_for(waiting, 10)
    assert connection.taken() == [("ack", "later")]


def test_different_ids_of_a_frame_leave_one_entry() -> None:
    wire, connections = frame("x"), [Connection() for _ in range(100)]
    texts = set()
    for number, connection in enumerate(connections):
        connection.stream(f"s{number}").push([wire])
        (labelled,) = connection.queue.take()
        texts.add(labelled.framed(websocket.encode_text_message))
    assert len(texts) == 100
    assert wire._framed == ()
    assert wire.last_labelled is not None
    assert wire.last_labelled[1] == "s99"


def test_frames_of_clients_with_the_same_id_are_joined_once() -> None:
    wires, connections = [frame("x"), frame("y")], [Connection() for _ in range(3)]
    joined: JoinedFrames = {}
    for connection in connections:
        connection.stream("a").push(wires)
    pieces = [join_frames(connection.queue.take(), websocket.encode_text_message, joined) for connection in connections]
    assert pieces[0] is pieces[1] is pieces[2]
