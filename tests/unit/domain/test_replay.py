"""A client that resumes has the same state as one that stayed connected, at every position where it can resume."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.replay import Gap
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.hub.filters import Filter, Resource
from stream_server.hub.firehose import Firehose, replay, required_resources
from stream_server.hub.run_feed import RunFeed
from stream_server.hub.subscriber_group import SubscriberGroup
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.wire import Wire
from support.builders import EPOCH, KEY, History, at, graph
from support.client_knowledge import Knowledge, history_rows
from support.run_moves import Move, apply_move, run_histories_of

LIMIT = 10_000_000

histories = run_histories_of(
    *("read", "fetch") * 4,
    *("start", "start", "run", "run", "push", "emit", "emit", "succeed", "retry", "fail", "advance"),
    *("clear", "expand", "kill", "mark_success", "skip", "start_run", "finish_run", "delete_run"),
)


class Disconnected(NamedTuple):
    """A client that has disconnected: its state and its token."""

    knowledge: Knowledge
    token: ResumeToken


class FollowedRun:
    """A run with one client that stays connected, and a copy of the client's state at each of its tokens."""

    def __init__(self, options: WatchOptions, dag: Graph | None = None) -> None:
        self.options = options
        self.history = History(dag)
        self.feed = RunFeed(KEY)
        self.feed.start(self.history.state(), self.history.cursor())
        self.live = Knowledge()
        self.disconnected: list[Disconnected] = []
        self._read = len(self.history.journal)
        self._position = self.history.cursor()
        self._subscription = self._join()[0]
        self._take()

    def play(self, move: Move) -> None:
        if move[0] == "read":
            self.read()
        elif move[0] == "fetch":
            self.fetch()
        else:
            apply_move(self.history, move)

    def read(self) -> None:
        batch, self._read = self.history.journal[self._read :], len(self.history.journal)
        self._position = self.history.cursor()
        self.feed.apply(batch, self._position)
        self._take()

    def fetch(self) -> None:
        while wanted := self.feed.wanted_tasks:
            self.feed.add_values(wanted, self.history.values(wanted), self._position)
        self._take()

    def resume(self, client: Disconnected) -> Knowledge | None:
        """Return the state of a client that resumes now; `None` if it gets a snapshot instead."""
        if self.feed.find_reset_reason(self.options, client.token):
            return None
        subscription, group, position = self._join(client.token)
        history = [row for row in history_rows(self.history) if not client.token.position.is_visible(row.txid)]
        wires = self.feed.replay(group, Gap(client.token, position, history), before_creation=False)
        if wires is None:
            self.feed.remove_subscription(subscription)
            return None
        subscription.prepend(wires)
        self.fetch()
        knowledge = client.knowledge.copy()
        knowledge.receive(wire.frame for wire in subscription.take())
        self.feed.remove_subscription(subscription)
        return knowledge

    def _join(self, token: ResumeToken | None = None) -> tuple[Subscription, SubscriberGroup, JournalPosition]:
        subscription = Subscription(LIMIT)
        group, position = self.feed.add_subscription(self.options, subscription, self._position, token)
        return subscription, group, position

    def _take(self) -> None:
        for wire in self._subscription.take():
            self.live.receive([wire.frame])
            if wire.token is not None and not wire.token.has_ended:
                self.disconnected.append(Disconnected(self.live.copy(), wire.token))


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("until", ["run", "result"])
@given(moves=histories)
def test_a_resumed_run_equals_the_live_one_at_every_position(
    moves: list[Move], until: Literal["run", "result"], *, output: bool
) -> None:
    followed = FollowedRun(WatchOptions(until=until, include_output=output))
    for move in [*moves, ("read", 0), ("fetch", 0)]:
        followed.play(move)
        if followed.live.end is not None:
            break
    for client in followed.disconnected:
        knowledge = followed.resume(client)
        assert knowledge in (None, followed.live)


def result_of_answer() -> FollowedRun:
    """Return a run of which the client has received the result."""
    followed = FollowedRun(WatchOptions(("answer",), until="run"))
    followed.history.start("answer")
    followed.history.push("answer", "first")
    followed.read()
    followed.fetch()
    assert followed.live.outcome == ("result", {"answer": b'"first"'})
    return followed


@pytest.mark.parametrize(
    ("move", "outcome"),
    [
        (lambda history: history.set_task("answer", "failed"), ("failure", {})),
        (lambda history: history.push("answer", "second"), ("result", {"answer": b'"second"'})),
        (lambda history: history.delete(), ("failure", {})),
        (lambda history: history.clear("answer", counted=False), None),
    ],
    ids=["fails", "pushes again", "is deleted", "is cleared"],
)
def test_a_result_that_was_retracted_meanwhile_is_not_resumed(
    move: Callable[[History], None], outcome: tuple[str, dict[str, bytes]] | None
) -> None:
    followed = result_of_answer()
    client = followed.disconnected[-1]
    move(followed.history)
    followed.read()
    followed.fetch()
    assert followed.live.outcome == outcome
    assert followed.resume(client) is None


def test_a_result_whose_task_succeeds_meanwhile_is_resumed() -> None:
    followed = result_of_answer()
    client = followed.disconnected[-1]
    followed.history.succeed("answer")
    followed.history.run_task("clean_up")
    followed.read()
    assert followed.resume(client) == followed.live


def test_a_failure_that_was_marked_as_success_meanwhile_is_not_resumed() -> None:
    followed = FollowedRun(WatchOptions(("answer",), until="run"))
    followed.history.start("answer")
    followed.history.set_task("answer", "failed")
    followed.read()
    client = followed.disconnected[-1]
    assert client.token.sent_outcome == "failure"
    followed.history.set_task("answer", "success")
    followed.read()
    followed.fetch()
    assert followed.live.outcome == ("result", {"answer": b"null"})
    assert followed.resume(client) is None


def test_a_failure_that_was_marked_as_success_and_as_failure_again_is_not_resumed() -> None:
    followed = FollowedRun(WatchOptions(("answer",), until="run"))
    followed.history.start("answer")
    followed.history.set_task("answer", "failed")
    followed.read()
    client = followed.disconnected[-1]
    for state in ("success", "failed"):
        followed.history.set_task("answer", state)
        followed.read()
    assert followed.live.outcome == ("failure", {})
    assert followed.resume(client) is None


def test_a_result_is_not_resumed_if_a_skipped_result_task_was_marked_as_success() -> None:
    followed = FollowedRun(WatchOptions(("left", "right"), until="run"), graph({"left": [], "right": []}, {}))
    followed.history.set_task("right", "skipped")
    followed.history.run_task("left", 1)
    followed.read()
    followed.fetch()
    client = followed.disconnected[-1]
    assert client.token.sent_outcome == "result"
    followed.history.set_task("right", "success")
    followed.read()
    followed.fetch()
    assert followed.live.outcome == ("result", {"left": b"1", "right": b"null"})
    assert followed.resume(client) is None


def test_a_run_that_was_deleted_and_created_again_is_not_resumed() -> None:
    followed = FollowedRun(WatchOptions(until="run"))
    token = followed.disconnected[-1].token
    followed.history.delete()
    deletion = followed.history.journal[-1]
    again = RunFeed(KEY)
    again.start(History().state(), followed.history.cursor())
    subscription = Subscription(LIMIT)
    group, position = again.add_subscription(followed.options, subscription, followed.history.cursor(), token)
    assert again.replay(group, Gap(token, position, [deletion]), before_creation=False) is None
    assert again.replay(group, Gap(token, position, [deletion]), before_creation=True) is not None


def test_output_of_a_cleared_try_is_not_resumed() -> None:
    followed = FollowedRun(WatchOptions(until="run"))
    client = followed.disconnected[-1]
    followed.history.start("answer")
    followed.history.clear("answer", counted=False)
    followed.history.emit_output("answer", "too late")
    followed.history.set_task("answer", "failed")
    followed.read()
    assert followed.live.output == []
    assert followed.resume(client) == followed.live


rows_of_dags = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["task", "run", "chunk"]), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


class KnownPermissions:
    """The DAG `a` may be read, and its output if `output` is true; `b` may not."""

    max_wait = 10.0

    def __init__(self, *, output: bool) -> None:
        self._output = output

    def may_read(self, resource: Resource) -> bool:
        return resource.dag_id == "a" and (self._output or not resource.output)

    def request_decision(self, resources: Collection[Resource], then: Callable[[], None]) -> None:
        raise AssertionError("everything is known")

    async def filter_readable(self, resources: Collection[Resource]) -> Collection[Resource]:
        return {one for one in resources if self.may_read(one)}


def firehose_row(seq: int, dag_id: str, kind: str) -> Transition:
    row = Transition(seq, 0, at(seq), TransitionKind.TASK, dag_id, "r", "t", -1, 1, "queued", None)
    if kind == "run":
        return row._replace(kind=TransitionKind.RUN, task_id=None)
    if kind == "chunk":
        body = f'{{"try_number": 1, "index": {seq}, "items": [{{"chunk": "secret"}}]}}'
        return row._replace(kind=TransitionKind.XCOM, xcom_key=OUTPUT_KEY, body=body)
    return row


def position_of(rows: Iterable[Transition], count: int) -> JournalPosition:
    """The position at which these rows are visible, and no others of so many transactions."""
    visible = {row.txid for row in rows}
    xmax = max(visible, default=0) + 1
    xip = tuple(txid for txid in range(1, min(xmax, count + 1)) if txid not in visible)
    return JournalPosition(EPOCH, min(xip, default=xmax), xmax, xip)


@pytest.mark.parametrize(
    "wanted", [Filter(), Filter(types=frozenset({"task", "chunk"})), Filter(types=frozenset({"chunk"}), redacted=True)]
)
@pytest.mark.parametrize("readable", [None, KnownPermissions(output=True), KnownPermissions(output=False)])
@given(kinds=rows_of_dags, data=st.data())
def test_a_resumed_firehose_equals_the_live_one_at_every_position(
    kinds: list[tuple[str, str, int]], wanted: Filter, readable: KnownPermissions | None, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(1, len(kinds) + 1)), label="the order in which transactions began")
    rows = [
        firehose_row(seq, dag_id, kind)._replace(txid=txid)
        for seq, (txid, (dag_id, kind, _)) in enumerate(zip(order, kinds, strict=True), 1)
    ]
    firehose, subscription = Firehose(), Subscription(LIMIT)
    firehose.add(wanted, subscription, position_of([], len(rows)), 0.0, readable)
    live: list[list[Wire]] = [list(subscription.take())]
    read = 0
    while read < len(rows):
        batch = rows[read : read + 1 + kinds[read][2]]
        read += len(batch)
        firehose.dispatch(batch, position_of(rows[:read], len(rows)), 0.0)
        live.append(list(subscription.take()))

    position = position_of(rows, len(rows))
    for number, wires in enumerate(live):
        if not wires:
            continue
        token = wires[-1].token
        assert token is not None
        history = [row for row in rows if not token.position.is_visible(row.txid)]
        required = required_resources(wanted, history)
        permitted = None if readable is None else {one for one in required if readable.may_read(one)}
        resumed, *replayed = replay(wanted, Gap(token, position, history), permitted)
        assert resumed.type == "resumed"
        later = [wire.json for batch in live[number + 1 :] for wire in batch]
        assert sorted(wire.json for wire in replayed) == sorted(later)
