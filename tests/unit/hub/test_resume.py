"""Clients that resume have the same state in the end as one that stayed connected, and as one that connects later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.replay import replay_run
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.hub import firehose, resuming, run_feed
from stream_server.hub.filters import Filter
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition, ResumePoint, ResumeToken
from stream_server.protocol.frames import Failure, Result, Waiting
from stream_server.server.metrics import Metrics
from support.builders import KEY, History, types
from support.client_knowledge import Knowledge, history_rows
from support.run_moves import Move, apply_move

MANY_BYTES = 10_000_000

TURNS = 10
"""Turns of the event loop after which everything waits for the test."""


class HistoryRead(NamedTuple):
    """A client that waits for the rows after its token."""

    since: JournalPosition
    rows: asyncio.Future[list[Transition] | None]


class Source:
    """The database of a hub. It returns runs at once, and histories and values when the test asks for it."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._histories: list[HistoryRead] = []
        self._values: list[tuple[Collection[str], asyncio.Future[ReturnValues]]] = []

    @property
    def is_waiting(self) -> bool:
        return bool(self._histories or self._values)

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        return self._history.state(), self._history.cursor()

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        self._histories.append(HistoryRead(since, asyncio.get_running_loop().create_future()))
        return await self._histories[-1].rows

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        self._values.append((task_ids, asyncio.get_running_loop().create_future()))
        return await self._values[-1][1]

    async def read_waiting(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        return {}

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        return False

    async def reconnect(self) -> None:
        raise AssertionError("the database is never lost")

    def return_histories(self) -> None:
        reads, self._histories = self._histories, []
        for since, rows in reads:
            if not rows.done():
                rows.set_result([row for row in history_rows(self._history) if not since.is_visible(row.txid)])

    def return_values(self) -> None:
        reads, self._values = self._values, []
        for task_ids, values in reads:
            if not values.done():
                values.set_result(self._history.values(task_ids))


class Client:
    """A client. It checks that its frames and its tokens agree with each other."""

    def __init__(self, subscribing: asyncio.Task[Subscription], knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.tokens: list[tuple[ResumeToken, Knowledge]] = []
        """What it can resume with, and what it knew there."""

        self.frames: list[str] = []
        """Types of all frames."""

        self._subscribing = subscribing

    def receive(self) -> None:
        """Take the frames that are due."""
        if not self._subscribing.done():
            return
        for wire in self._subscribing.result().take():
            if isinstance(wire.frame, Result | Failure):
                assert self.knowledge.outcome is None, "only a reset retracts an outcome"
            self.frames += types([wire.frame])
            self.knowledge.receive([wire.frame])
            kind = None if self.knowledge.outcome is None else self.knowledge.outcome[0]
            if self.knowledge.end is not None:
                assert self.knowledge.end[1] == (kind or "none")
            if wire.token is not None:
                assert wire.token.sent_outcome == kind
                if not wire.token.has_ended:
                    self.tokens.append((wire.token, self.knowledge.copy()))

    def leave(self) -> None:
        if self._subscribing.done():
            self._subscribing.result().close()
        self._subscribing.cancel()


class Replicas:
    """Two servers: one with a client that stays connected, and one with clients that resume and that connect later."""

    def __init__(self, history: History, options: WatchOptions) -> None:
        self.history = history
        self.sources = [Source(self.history), Source(self.history)]
        self.hubs = [Hub(source, max_queued_bytes=MANY_BYTES, observer=Metrics()) for source in self.sources]
        for hub in self.hubs:
            hub.start(self.history.cursor())
        self._options = options
        self._read = len(self.history.journal)
        self.live = self._connect(self.hubs[0])
        self.clients: list[Client] = []
        self._tokens: list[tuple[ResumeToken, Knowledge]] = []

    async def play(self, move: Move) -> None:
        name, number = move
        if name == "read":
            self.read()
        elif name == "fetch":
            await self.fetch()
        elif name == "history":
            self.sources[1].return_histories()
        elif name == "connect":
            self.connect()
        elif name == "resume":
            self.resume(number)
        elif name == "leave":
            self.leave(number)
        else:
            apply_move(self.history, move)
        await self.settle()

    async def play_to_the_end(self, moves: list[Move]) -> None:
        """Play moves until the live client has its `end`, and let the others get everything that is left."""
        await self.settle()
        for move in [*moves, ("read", 0), ("fetch", 0)]:
            await self.play(move)
            if self.live.knowledge.end is not None:
                break
        while any(source.is_waiting for source in self.sources):
            self.sources[1].return_histories()
            await self.fetch()
            await self.settle()

    async def settle(self) -> None:
        """Let everything run that does not wait for the test, and the clients receive what is due."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for client in (self.live, *self.clients):
            client.receive()
        self._tokens = [token for client in (self.live, *self.clients) for token in client.tokens]

    def read(self) -> None:
        batch, self._read = self.history.journal[self._read :], len(self.history.journal)
        for hub in self.hubs:
            hub.dispatch(batch, self.history.cursor())

    async def fetch(self) -> None:
        for source in self.sources:
            source.return_values()
        await self.settle()

    def connect(self) -> None:
        if self._can_connect():
            self.clients.append(self._connect(self.hubs[1]))

    def resume(self, number: int) -> None:
        """Resume with one of all tokens that clients have got."""
        if self._tokens and self._can_connect():
            token, knowledge = self._tokens[-1 - number % len(self._tokens)]
            self.clients.append(self._connect(self.hubs[1], ResumePoint(token), knowledge.copy()))

    def leave(self, number: int) -> None:
        if self.clients:
            self.clients.pop(number % len(self.clients)).leave()

    async def close(self) -> None:
        for client in (self.live, *self.clients):
            client.leave()
        for hub in self.hubs:
            await hub.close()

    def _connect(self, hub: Hub, resume_from: ResumePoint | None = None, knowledge: Knowledge | None = None) -> Client:
        subscribing = asyncio.create_task(hub.subscribe(KEY, self._options, resume_from=resume_from))
        return Client(subscribing, knowledge or Knowledge())

    def _can_connect(self) -> bool:
        """Keep both servers at the same batches: a load that is ahead of the tail would merge some of them."""
        if not self.hubs[1].is_watched(KEY):
            self.read()
        return not self.history.deleted


moves_of_clients = ("read", "read", "fetch", "history", "connect", "resume", "resume", "leave")
moves_of_a_run = (
    *("start", "run", "run", "push", "push", "emit", "succeed", "retry", "fail", "advance", "advance", "defer"),
    *("clear", "clear", "expand", "kill", "mark_success", "skip", "start_run", "finish_run", "delete_run"),
)
beginnings = {
    "nothing": (),
    "a result": ("start", "push", "read", "fetch", "resume"),
    "a result of a task that has succeeded": ("run", "read", "fetch", "read", "resume"),
    "a failure": ("start", "fail", "read", "resume"),
}
"""Outcomes that clients know at the start."""

# The task instances are sorted: 0 and 3 stand for that of `answer`, which has the result.
numbers = st.sampled_from([0, 0, 0, 3, 3, 3, *range(12)])
all_moves = st.builds(
    lambda beginning, moves: [*((name, 0) for name in beginnings[beginning]), *moves],
    st.sampled_from(sorted(beginnings)),
    st.lists(st.tuples(st.sampled_from([*moves_of_clients * 3, *moves_of_a_run]), numbers), min_size=5, max_size=40),
)


@pytest.mark.parametrize(
    "options",
    [
        WatchOptions(until="run"),
        WatchOptions(("ask", "answer"), until="run", confirm="success", include_output=False),
        WatchOptions(("answer",), until="result", include_output=False),
    ],
    ids=["until run", "two results", "until result"],
)
@given(moves=all_moves)
def test_clients_that_resume_know_the_same_as_one_that_stays(moves: list[Move], options: WatchOptions) -> None:
    asyncio.run(compare_clients(moves, options))


@pytest.mark.parametrize("earlier_marks", [None, {"ask": True, "answer": True, "clean_up": False}])
@given(moves=all_moves)
def test_clients_that_resume_know_the_result_by_native_marks(
    moves: list[Move], earlier_marks: Mapping[str, bool] | None
) -> None:
    asyncio.run(compare_clients(moves, WatchOptions(until="run"), {"ask", "answer"}, earlier_marks))


async def compare_clients(
    moves: list[Move],
    options: WatchOptions,
    marked: Collection[str] | None = None,
    earlier_marks: Mapping[str, bool] | None = None,
) -> None:
    history = History()
    history.marked, history.earlier_marks = marked, earlier_marks
    replicas = Replicas(history, options)
    try:
        await replicas.play_to_the_end(moves)
        for client in replicas.clients:
            assert client.knowledge == replicas.live.knowledge
    finally:
        await replicas.close()


KNOWN_RESULT = [*((name, 0) for name in beginnings["a result"]), ("history", 0)]


@pytest.mark.parametrize(
    ("moves", "frames"),
    [
        ([("push", 0), ("read", 0), ("fetch", 0)], ["reset", "snapshot", "result"]),
        ([("fail", 0), ("read", 0)], ["reset", "snapshot", "failure"]),
        ([("fail", 0), ("start_run", 0), ("finish_run", 0), ("read", 0)], ["reset", "snapshot", "failure", "end"]),
        ([("succeed", 0), ("read", 0)], ["task"]),
        ([("start", 1), ("emit", 1), ("retry", 1), ("read", 0), ("fetch", 0)], ["reset", "snapshot", "result"]),
    ],
    ids=["pushes again", "fails", "run ends", "succeeds", "output of another task is retracted"],
)
async def test_a_result_that_only_resumed_clients_know(moves: list[Move], frames: list[str]) -> None:
    replicas = Replicas(History(), WatchOptions(until="run"))
    for move in KNOWN_RESULT:
        await replicas.play(move)
    (client,) = replicas.clients
    assert client.frames == ["resumed"], "the result is not sent again, nor are its values read"
    for move in moves:
        await replicas.play(move)
    assert client.frames[-len(frames) :] == frames
    assert client.knowledge == replicas.live.knowledge
    await replicas.close()


async def test_clients_that_know_a_result_share_frames_with_later_ones_once_these_know_it() -> None:
    replicas = Replicas(History(), WatchOptions(until="run"))
    for move in [*KNOWN_RESULT, ("connect", 0), ("fetch", 0), ("succeed", 0), ("read", 0)]:
        await replicas.play(move)
    resumed, late = replicas.clients
    assert (resumed.frames, late.frames) == (["resumed", "task"], ["snapshot", "result", "task"])
    assert resumed.tokens[-1][0] == late.tokens[-1][0]
    await replicas.close()


WITHIN_SECONDS = 10.0


class EventLoopCheck:
    """Waits in a function until the event loop has gone on: for ever, if the event loop calls the function."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls = 0
        self.on_call: Callable[[], object] = lambda: None
        """Called in the event loop at each call."""

    def wrap(self, function: Any) -> Any:
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            goes_on = threading.Event()
            self._loop.call_soon_threadsafe(self.on_call)
            self._loop.call_soon_threadsafe(goes_on.set)
            assert goes_on.wait(WITHIN_SECONDS), "the event loop waits for this call"
            return function(*args, **kwargs)

        return checked


@pytest.fixture
async def frames_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> EventLoopCheck:
    """Have each history be too long for the event loop."""
    check = EventLoopCheck(asyncio.get_running_loop())
    monkeypatch.setattr(resuming, "ROWS_AT_ONCE", 0)
    monkeypatch.setattr(run_feed, "replay_run", check.wrap(replay_run))
    monkeypatch.setattr(resuming, "replay", check.wrap(firehose.replay))
    return check


async def _resume(replicas: Replicas, options: WatchOptions | Filter) -> Subscription:
    """Resume at the beginning of the history, and return once all that was missed is queued."""
    hub, source = replicas.hubs[0], replicas.sources[0]
    first = ResumePoint(ResumeToken(hub.cursor))
    replicas.history.set_task("ask", "running")
    replicas.history.set_task("ask", "success")
    replicas.read()
    subscribing = asyncio.create_task(
        hub.subscribe_firehose(options, resume_from=first)
        if isinstance(options, Filter)
        else hub.subscribe(KEY, options, resume_from=first)
    )
    await replicas.settle()
    source.return_histories()
    return await asyncio.wait_for(subscribing, WITHIN_SECONDS)


@pytest.mark.parametrize("options", [WatchOptions(until="run"), Filter()], ids=["run", "firehose"])
async def test_the_event_loop_goes_on_while_many_rows_become_frames(
    frames_in_a_thread: EventLoopCheck, options: WatchOptions | Filter
) -> None:
    replicas = Replicas(History(), WatchOptions(until="run"))
    await replicas.settle()
    subscription = await _resume(replicas, options)
    assert types([wire.frame for wire in subscription.take()])[:3] == ["resumed", "task", "task"]
    assert frames_in_a_thread.calls == 1
    subscription.close()
    await replicas.close()


async def test_a_run_that_is_loaded_again_while_rows_become_frames_sends_a_reset(
    frames_in_a_thread: EventLoopCheck,
) -> None:
    replicas = Replicas(History(), WatchOptions(until="run"))
    await replicas.settle()
    hub = replicas.hubs[0]
    frames_in_a_thread.on_call = lambda: hub.resync(hub.cursor, "transitions_lost")
    subscription = await _resume(replicas, WatchOptions(until="run"))
    await replicas.settle()
    assert types([wire.frame for wire in subscription.take()])[-2:] == ["reset", "snapshot"]
    assert frames_in_a_thread.calls == 1
    subscription.close()
    await replicas.close()
