"""Output of running tasks: kept while its try is current, sent to subscribers, retracted when the try is repeated."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.emitted_output import FRAME_OVERHEAD_BYTES, RunOutput
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.replay import Gap
from stream_server.domain.run_state import RunState
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import output_frames
from stream_server.hub.run_feed import RunFeed
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import AnyFrame, Reset, Resumed
from stream_server.protocol.output_frames import Chunk, OutputFrame, Progress
from support.builders import EPOCH, KEY, History, at, types
from support.client_knowledge import history_rows
from support.run_moves import Move, apply_move, run_histories_of

UNTIL_RUN = WatchOptions(until="run")

Received = list[tuple[str, int, int, int]]


def chunks(frames: Iterable[AnyFrame]) -> list[tuple[str, int, int, int]]:
    """Return the coordinates that identify each item of output."""
    return [(one.task_id, one.map_index, one.try_number, one.index) for one in frames if isinstance(one, OutputFrame)]


def texts(frames: Iterable[AnyFrame]) -> list[Any]:
    return [msgspec.json.decode(one.value) for one in frames if isinstance(one, Chunk) and one.value]


class Client:
    """The output that a client has that follows the protocol."""

    def __init__(self) -> None:
        self.received: Received = []

    def receive(self, frames: Iterable[AnyFrame]) -> None:
        for frame in frames:
            if isinstance(frame, Reset):
                self.received = []
            self.received += [one for one in chunks([frame]) if one not in self.received]


class FollowedRun:
    """A feed that follows a history, with its clients."""

    def __init__(self) -> None:
        self.history = History()
        self.feed = RunFeed(KEY)
        self.feed.start(self.history.state(), self.history.cursor())
        self._read = len(self.history.journal)
        self._clients: list[tuple[Client, Subscription]] = []

    @property
    def run(self) -> RunState:
        assert self.feed.run_state is not None
        return self.feed.run_state

    def join(self, options: WatchOptions = UNTIL_RUN) -> Subscription:
        subscription = Subscription(10_000_000)
        self.feed.add_subscription(options, subscription, self.history.cursor())
        return subscription

    def follow(self) -> Client:
        """Add a client, and return it."""
        self._clients.append((Client(), self.join()))
        return self._clients[-1][0]

    def read(self) -> None:
        """Apply a batch, and send its frames to the clients."""
        batch, self._read = self.history.journal[self._read :], len(self.history.journal)
        self.feed.apply(batch, self.history.cursor())
        for client, subscription in self._clients:
            client.receive(wire.frame for wire in subscription.take())

    def resume(self, read: int) -> list[AnyFrame] | None:
        """Return the frames for a client that resumes after this number of rows; `None` if it cannot."""
        subscription, token = Subscription(10_000_000), self._cursor_at(read)
        group, position = self.feed.add_subscription(UNTIL_RUN, subscription, self.history.cursor(), token)
        past = history_rows(self.history)[read:]
        replayed = self.feed.replay(group, Gap(token, position, past), before_creation=False)
        return None if replayed is None else [wire.frame for wire in replayed]

    def _cursor_at(self, read: int) -> ResumeToken:
        xmax = self.history.journal[read - 1].txid + 1
        return ResumeToken(JournalPosition(EPOCH, xmax, xmax))


output_histories = run_histories_of(
    *("emit", "emit", "start", "start", "read", "retry", "advance", "run", "fail", "clear", "expand")
)


@given(output_histories)
def test_connected_client_has_the_current_output(moves: list[Move]) -> None:
    followed = FollowedRun()
    client = followed.follow()
    late: list[Client] = []
    for number, move in enumerate(moves):
        if move[0] == "read":
            followed.read()
            if number % 3 == 0:
                late.append(followed.follow())
        else:
            apply_move(followed.history, move)
    followed.read()
    for one in (client, *late):
        assert one.received == chunks(followed.run.output.frames)


@given(output_histories, st.data())
def test_resuming_client_has_the_current_output_or_gets_a_reset(moves: list[Move], data: st.DataObject) -> None:
    followed = FollowedRun()
    client = followed.follow()
    positions: list[tuple[int, Received]] = []
    for move in moves:
        if move[0] == "read":
            followed.read()
            positions.append((len(followed.history.journal), [*client.received]))
        else:
            apply_move(followed.history, move)
    followed.read()
    if not positions or not followed.feed.groups:
        return
    read, received = data.draw(st.sampled_from(positions))
    replayed = followed.resume(read)
    if replayed is not None:
        assert isinstance(replayed[0], Resumed)
        resumed = Client()
        resumed.received = received
        resumed.receive(replayed)
        assert resumed.received == chunks(followed.run.output.frames)


def test_output_is_sent_once_and_in_order_to_all_subscribers() -> None:
    followed = FollowedRun()
    first = followed.join()
    first.take()
    followed.history.start("answer")
    followed.history.emit_output("answer", "Be", "cause")
    followed.history.emit_output("answer", {"any": ["thing"]}, None)
    followed.read()
    frames = [wire.frame for wire in first.take()]
    assert types(frames) == ["task"] * 3 + ["chunk"] * 4
    assert texts(frames) == ["Be", "cause", {"any": ["thing"]}, None]
    assert chunks(frames) == [("answer", -1, 1, index) for index in range(4)]
    assert [one.seq for one in frames if isinstance(one, Chunk)] == [8, 8, 9, 9]
    joined = [wire.frame for wire in followed.join().take()]
    assert joined[1:] == frames[3:]


def test_retry_retracts_the_output_of_its_try_only() -> None:
    followed = FollowedRun()
    watcher = followed.join()
    followed.history.start("ask")
    followed.history.emit_output("ask", "why")
    followed.history.start("answer")
    followed.history.emit_output("answer", "Be", "caus")
    followed.read()
    watcher.take()
    followed.history.set_task("answer", "up_for_retry")
    followed.history.emit_output("answer", "e")
    followed.read()
    frames = [wire.frame for wire in watcher.take()]
    assert types(frames) == ["task", "reset", "snapshot", "chunk"]
    assert isinstance(frames[1], Reset)
    assert frames[1].reason == "retried"
    assert texts(frames) == ["why"]
    followed.history.start("answer")
    followed.history.emit_output("answer", "Therefore")
    followed.history.emit_output("answer", "late", try_number=1)
    followed.read()
    assert texts(wire.frame for wire in watcher.take()) == ["Therefore"]
    assert texts(wire.frame for wire in followed.join().take()) == ["why", "Therefore"]


def test_retry_without_output_retracts_nothing() -> None:
    followed = FollowedRun()
    watcher = followed.join()
    followed.history.start("ask")
    followed.history.emit_output("ask", "why")
    followed.history.start("answer")
    followed.history.set_task("answer", "up_for_retry")
    followed.read()
    assert "reset" not in types([wire.frame for wire in watcher.take()])


def test_clear_retracts_output_and_sends_a_valid_result_again() -> None:
    followed = FollowedRun()
    watcher = followed.join(WatchOptions(("ask",), until="run"))
    followed.history.start("answer")
    followed.history.emit_output("answer", "Because")
    followed.history.run_task("ask", "why")
    followed.read()
    followed.feed.add_values(frozenset({"ask"}), followed.history.values({"ask"}), followed.history.cursor())
    watcher.take()
    followed.history.clear("answer", counted=False)
    followed.read()
    frames = [wire.frame for wire in watcher.take()]
    assert types(frames) == ["task", "reset", "snapshot", "result"]
    assert isinstance(frames[1], Reset)
    assert frames[1].reason == "cleared"


def test_result_follows_earlier_output() -> None:
    followed = FollowedRun()
    watcher = followed.join(WatchOptions())
    followed.history.start("answer")
    followed.history.emit_output("answer", "Because")
    followed.history.push("answer", "Because")
    followed.read()
    followed.feed.add_values(frozenset({"answer"}), followed.history.values({"answer"}), followed.history.cursor())
    assert types([wire.frame for wire in watcher.take()])[-3:] == ["chunk", "result", "end"]
    again = followed.join(WatchOptions())
    followed.feed.add_values(frozenset({"answer"}), followed.history.values({"answer"}), followed.history.cursor())
    assert types([wire.frame for wire in again.take()]) == ["snapshot", "chunk", "result", "end"]


def test_subscriber_without_output_gets_none() -> None:
    followed = FollowedRun()
    watcher = followed.join(WatchOptions(include_output=False, until="run"))
    followed.history.start("answer")
    followed.history.emit_output("answer", "Because")
    followed.read()
    followed.history.set_task("answer", "up_for_retry")
    followed.read()
    assert types([wire.frame for wire in watcher.take()]) == ["snapshot", *["task"] * 4]


def test_batch_that_was_written_twice_is_sent_once() -> None:
    followed = FollowedRun()
    watcher = followed.join()
    followed.history.start("answer")
    followed.history.emit_output("answer", "a", "b")
    followed.history.emit_output("answer", "a", "b", index=0)
    followed.history.emit_output("answer", "c", index=2)
    followed.read()
    assert texts(wire.frame for wire in watcher.take()) == ["a", "b", "c"]


def test_try_that_restarts_its_output_retracts_it() -> None:
    """A sensor in mode `reschedule` is another process with each poke, and Airflow deletes what the last one pushed."""
    followed = FollowedRun()
    watcher = followed.join()
    followed.history.start("answer")
    followed.history.emit_output("answer", "first", "poke")
    followed.read()
    read = len(followed.history.journal)
    watcher.take()
    followed.history.set_task("answer", "up_for_reschedule")
    followed.history.set_task("answer", "running")
    followed.history.emit_output("answer", "second", index=0)
    followed.read()
    frames = [wire.frame for wire in watcher.take()]
    assert types(frames)[-3:] == ["reset", "snapshot", "chunk"]
    assert followed.resume(read) is None
    assert texts(followed.run.output.frames) == ["second"]
    assert followed.history.state().output.frames == followed.run.output.frames


def test_oldest_output_is_dropped_above_the_limit() -> None:
    output = RunOutput(3 * FRAME_OVERHEAD_BYTES)
    for index in range(5):
        output.add_frames(output_frames(row([{"chunk": ""}], index=index)), index)
    assert [one.index for one in output.frames] == [3, 4]
    kept_nothing = RunOutput(0)
    assert kept_nothing.add_frames(output_frames(row([{"chunk": ""}])), 0)[0]
    assert not kept_nothing.frames


@pytest.mark.parametrize(
    "body",
    [
        None,
        "nonsense",
        "[]",
        "null",
        '{"index": 0, "items": []}',
        '{"try_number": 1, "index": -1, "items": [{"chunk": 1}]}',
        '{"try_number": 1, "index": 0, "items": [{"progress": "half"}]}',
        '{"try_number": 1, "index": 0, "items": [{"neither": 1}]}',
        '{"try_number": 1, "index": 0, "items": []}',
        '{"try_number": 1, "index": 1e400, "items": []}',
    ],
)
def test_malformed_output_is_ignored(body: str | None) -> None:
    history = History()
    history.start("answer")
    run = history.state()
    assert not run.apply(row([])._replace(body=body))
    assert not run.output.frames


def test_progress_has_its_text() -> None:
    items = [{"progress": 0.5}, {"progress": None, "text": "searching"}, {"progress": 1, "text": None}, {"chunk": 0.5}]
    emitted = output_frames(row(items, index=7))
    assert [msgspec.to_builtins(one.value) for one in emitted if isinstance(one, Progress)] == [
        {"fraction": 0.5, "text": None},
        {"fraction": None, "text": "searching"},
        {"fraction": 1.0, "text": None},
    ]
    assert [one.index for one in emitted] == [7, 8, 9, 10]


def test_frames_of_an_agent_have_their_values() -> None:
    request = {"id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}
    items = [
        {"thinking": "They ask for the weather."},
        {"tool_call": request},
        {"tool_call": {**request, "arguments": '{"ci', "truncated": True}},
        {"tool_result": {"id": "c1", "result": {"celsius": 21}}},
        {"tool_result": {"id": "c1", "result": None}},
        {"tool_result": {"id": "c1", "error": "No such city"}},
    ]
    emitted = output_frames(row(items))
    values = [{one.__struct_config__.tag: json.loads(msgspec.json.encode(one.value))} for one in emitted]
    assert values == items
    assert [one.index for one in emitted] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "bad",
    [
        {"thinking": 1},
        {"tool_call": {"id": 1, "name": "get_weather", "arguments": {}}},
        {"tool_call": "get_weather"},
        {"tool_result": {"result": 1}},
        {"progress": "half"},
        {"of a later version": {"text": "a"}},
        "text",
        None,
    ],
)
def test_item_that_is_not_known_leaves_a_gap(bad: object) -> None:
    assert chunks(output_frames(row([{"chunk": "a"}, bad, {"chunk": "b"}]))) == [
        ("answer", -1, 1, 0),
        ("answer", -1, 1, 2),
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"chunk": "x" * 1000},
        {"thinking": "x" * 1000},
        {"tool_call": {"id": "c1", "name": "write", "arguments": "x" * 1000}},
        {"tool_result": {"id": "c1", "result": "x" * 1000}},
        {"tool_result": {"id": "c1", "error": "x" * 1000}},
    ],
)
def test_values_of_all_kinds_count_for_the_limit(item: object) -> None:
    output = RunOutput(2 * (FRAME_OVERHEAD_BYTES + 1100))
    for index in range(10):
        output.add_frames(output_frames(row([item], index=index)), index)
    assert [frame.index for frame in output.frames] == [8, 9]


def row(items: list[Any], *, index: int = 0) -> Transition:
    body = msgspec.json.encode({"try_number": 1, "index": index, "items": items}).decode()
    made = Transition(index + 1, index + 1, at(index), TransitionKind.XCOM, *KEY, "answer", -1)
    return made._replace(xcom_key=OUTPUT_KEY, body=body)
