from __future__ import annotations

import json
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.replay import Gap
from stream_server.hub.firehose import (
    BOOKMARK_SECONDS,
    MAX_PENDING_TRANSITIONS,
    Filter,
    Firehose,
    Resource,
    replay,
    required_resources,
)
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumeToken
from stream_server.protocol.wire import Wire
from support.firehose_rows import cursor, last_cursor, output_row, sent_types, transition

NAMES = st.sampled_from(["a", "b", "c"])
SOME = st.frozensets(NAMES, max_size=2)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES)), SOME, SOME, SOME)
def test_a_filter_matches_what_it_names_and_nothing_else(
    rows: list[tuple[str, str, str]],
    dag_ids: frozenset[str],
    task_ids: frozenset[str],
    states: frozenset[str],
) -> None:
    wanted = Filter(dag_ids=dag_ids, task_ids=task_ids, states=states)
    for seq, (dag_id, task_id, state) in enumerate(rows):
        expected = all(
            not names or value in names for names, value in ((dag_ids, dag_id), (task_ids, task_id), (states, state))
        )
        assert wanted.matches(transition(seq, dag_id, task_id, state), "task") == expected


def test_a_filter_of_tasks_matches_no_run() -> None:
    assert not Filter(task_ids=frozenset({"t"})).matches(transition(1, task_id=None), "run")
    assert not Filter(types=frozenset({"task"})).matches(transition(1, task_id=None), "run")
    assert Filter(types=frozenset({"run"})).matches(transition(1, task_id=None), "run")
    assert Filter(states=frozenset({"no_status"})).matches(transition(1, state=None), "task")


def test_each_client_gets_what_matches_and_the_position() -> None:
    firehose, all_, some = Firehose(), Subscription(10**6), Subscription(10**6)
    assert not firehose
    firehose.add(Filter(), all_, cursor(1), 0.0)
    firehose.add(Filter(dag_ids=frozenset({"b"})), some, cursor(1), 0.0)
    assert firehose
    for one in (all_, some):
        assert last_cursor(one.take()) == cursor(1)
    firehose.dispatch([transition(1), transition(2, "b"), transition(3, "b", None), transition(4)], cursor(5), 1.0)
    wires = all_.take()
    assert [wire.type for wire in wires] == ["task", "task", "run", "task"]
    assert last_cursor(wires) == cursor(5)
    wires = some.take()
    assert [wire.type for wire in wires] == ["task", "run"]
    assert last_cursor(wires) == cursor(5)


def test_a_client_without_matches_gets_the_position_now_and_then() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(dag_ids=frozenset({"b"})), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.dispatch([transition(1)], cursor(2), BOOKMARK_SECONDS / 2)
    assert sent_types(subscription) == []
    firehose.dispatch([], cursor(2), BOOKMARK_SECONDS + 1)
    assert sent_types(subscription) == [], "the journal has not gone further"
    firehose.dispatch([transition(2)], cursor(3), BOOKMARK_SECONDS + 1)
    wires = subscription.take()
    assert [wire.type for wire in wires] == ["ping"]
    assert last_cursor(wires) == cursor(3)


def test_frames_are_shared_by_all_clients() -> None:
    firehose = Firehose()
    ones = [Subscription(10**6) for _ in range(3)]
    for one in ones:
        firehose.add(Filter(), one, cursor(1), 0.0)
        sent_types(one)
    firehose.dispatch([transition(1), transition(2)], cursor(3), 0.0)
    first, *others = [one.take() for one in ones]
    assert all(wire is same for other in others for wire, same in zip(first, other, strict=True))


def test_a_removed_client_gets_nothing() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.remove(subscription)
    firehose.dispatch([transition(1)], cursor(2), 0.0)
    firehose.resync("transitions_lost", cursor(2))
    assert sent_types(subscription) == []
    assert not firehose
    firehose.remove(subscription)


def test_a_resync_resets_all_clients() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(dag_ids=frozenset({"b"})), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.resync("transitions_lost", cursor(9))
    wires = subscription.take()
    assert [wire.type for wire in wires] == ["reset"]
    assert last_cursor(wires) == cursor(9)


@pytest.mark.parametrize("named", ["a", "nobody"])
def test_a_replay_ends_where_the_live_stream_starts(named: str) -> None:
    history = [transition(2), transition(3), transition(7)]
    wires = replay(Filter(dag_ids=frozenset({named})), Gap(ResumeToken(cursor(2)), cursor(5), history))
    assert [wire.type for wire in wires] == ["resumed", *(["task", "task"] if named == "a" else [])]
    assert last_cursor(wires) == cursor(5)


class Reader:
    """Known permissions: `a` for the runs of a DAG, `a_said` for the output of its tasks."""

    def __init__(self, **known: bool) -> None:
        self.known = known
        self.max_wait = 10.0
        self.asked: list[tuple[set[str], Callable[[], None]]] = []

    def may_read(self, reading: Resource) -> bool | None:
        return self.known.get(_name(reading))

    def request_decision(self, readings: Collection[Resource], then: Callable[[], None]) -> None:
        self.asked.append((set(map(_name, readings)), then))

    async def filter_readable(self, readings: Collection[Resource]) -> Collection[Resource]:
        return {reading for reading in readings if self.known.get(_name(reading))}

    def learn(self, **known: bool) -> None:
        """Add permissions, and call all callbacks that wait."""
        self.known |= known
        asked, self.asked = self.asked, []
        for _, then in asked:
            then()


def _name(reading: Resource) -> str:
    return f"{reading.dag_id}_said" if reading.output else reading.dag_id


def follow(firehose: Firehose, reader: Reader, wanted: Filter | None = None) -> Subscription:
    subscription = Subscription(10**6)
    firehose.add(wanted or Filter(), subscription, cursor(1), 0.0, reader)
    sent_types(subscription)
    return subscription


def dag_ids(subscription: Subscription) -> list[str]:
    return [getattr(wire.frame, "dag_id", "") for wire in subscription.take()]


def test_transitions_that_may_not_be_read_are_not_sent() -> None:
    firehose, reader = Firehose(), Reader(a=True, b=False)
    subscription = follow(firehose, reader)
    firehose.dispatch([transition(1), transition(2, "b"), transition(3)], cursor(4), 0.0)
    firehose.dispatch([transition(4, "b")], cursor(5), 0.0)
    assert dag_ids(subscription) == ["a", "a"]


def test_batches_wait_in_order_until_permissions_are_known() -> None:
    firehose, reader = Firehose(), Reader(a=True)
    subscription = follow(firehose, reader)
    for seq, dag_id in enumerate(["a", "new", "a", "newer", "a"], start=1):
        firehose.dispatch([transition(seq, dag_id)], cursor(seq + 1), float(seq))
    assert dag_ids(subscription) == ["a"]
    assert [asked for asked, _ in reader.asked] == [{"new"}]
    reader.learn(new=True)
    assert dag_ids(subscription) == ["new", "a"]
    reader.learn(newer=False)
    assert dag_ids(subscription) == ["a"]
    assert reader.asked == []


def test_transitions_that_do_not_match_are_not_looked_up() -> None:
    firehose, reader = Firehose(), Reader(a=True)
    subscription = follow(firehose, reader, Filter(dag_ids=frozenset({"a"})))
    firehose.dispatch([transition(1), transition(2, "b")], cursor(3), 0.0)
    assert (dag_ids(subscription), reader.asked) == (["a"], [])


def test_a_new_client_gets_no_pending_batches() -> None:
    firehose, reader = Firehose(), Reader(a=True)
    first = follow(firehose, reader)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    second = follow(firehose, reader)
    firehose.dispatch([transition(2)], cursor(3), 0.0)
    gone = follow(firehose, reader)
    firehose.remove(gone)
    reader.learn(new=True)
    assert (dag_ids(first), dag_ids(second), dag_ids(gone)) == (["new", "a"], ["a"], [])


def test_pending_transitions_are_bounded() -> None:
    firehose, reader = Firehose(), Reader()
    subscription = follow(firehose, reader)
    for batch in range(3):
        firehose.dispatch(
            [transition(seq, "new") for seq in range(MAX_PENDING_TRANSITIONS // 2)], cursor(batch + 2), 0.0
        )
    assert subscription.closed is not None
    assert (subscription.closed.code, subscription.closed.reconnect) == (CloseCode.UNAVAILABLE, True)


def test_a_batch_that_waits_too_long_disconnects_its_group_only() -> None:
    firehose, silent, reader = Firehose(), Reader(), Reader(new=True)
    waiting, other_filter = follow(firehose, silent), follow(firehose, silent, Filter(dag_ids=frozenset({"b"})))
    other_caller = follow(firehose, reader)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    for seconds in (5.0, 10.0):
        # The answer is still unknown, and is asked for again.
        silent.learn()
        firehose.dispatch([], cursor(2), seconds)
        assert waiting.closed is None
    assert len(silent.asked) == 1
    firehose.dispatch([transition(2, "new")], cursor(3), 10.1)
    assert waiting.closed is not None
    assert (waiting.closed.code, waiting.closed.reconnect) == (CloseCode.UNAVAILABLE, True)
    silent.learn()
    assert silent.asked == []
    assert (other_filter.closed, dag_ids(other_caller)) == (None, ["new", "new"])


def test_an_answer_in_time_ends_the_wait() -> None:
    firehose, reader = Firehose(), Reader()
    subscription = follow(firehose, reader)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    firehose.dispatch([transition(2, "newer")], cursor(3), 9.0)
    reader.learn(new=True)
    firehose.dispatch([], cursor(3), 19.0)
    assert (subscription.closed, dag_ids(subscription)) == (None, ["new"])


def test_updated_permissions_apply_from_the_next_batch() -> None:
    firehose, ada, bob = Firehose(), Reader(a=True, b=False), Reader(a=False, b=True)
    subscription = follow(firehose, ada)
    firehose.update_permissions(subscription, bob, 0.0)
    firehose.dispatch([transition(1), transition(2, "b")], cursor(3), 0.0)
    assert dag_ids(subscription) == ["b"]
    firehose.dispatch([transition(3, "new")], cursor(4), 0.0)
    firehose.update_permissions(subscription, ada, 0.0)
    assert subscription.closed is not None
    assert subscription.closed.code == CloseCode.ACCESS_CHANGED


def test_a_resync_replaces_pending_batches() -> None:
    firehose, reader = Firehose(), Reader()
    subscription = follow(firehose, reader)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    firehose.resync("transitions_lost", cursor(3))
    reader.learn(new=True)
    assert sent_types(subscription) == ["reset"]


EVERYTHING = Filter(types=frozenset({"task", "chunk"}))


def values(subscription: Subscription) -> list[object]:
    """Return the value of output, `withheld` without one, and `task` for transitions."""
    return [_value(wire) for wire in subscription.take()]


def _value(wire: Wire) -> object:
    frame = json.loads(wire.json)
    return "withheld" if frame.get("withheld") else frame.get("value", frame["type"])


def test_values_are_sent_to_callers_that_may_read_them() -> None:
    firehose, reader = Firehose(), Reader(a=True, a_said=True, b=True, b_said=False)
    subscription = follow(firehose, reader, EVERYTHING)
    firehose.dispatch([output_row(1), output_row(2, "b"), transition(3)], cursor(4), 0.0)
    assert values(subscription) == ["secret", "withheld", "task"]


def test_values_wait_until_their_permission_is_known() -> None:
    firehose, reader = Firehose(), Reader(a=True)
    all_, some = follow(firehose, reader, EVERYTHING), follow(firehose, reader)
    firehose.dispatch([output_row(1), transition(2)], cursor(3), 0.0)
    # A client that wants no output does not wait for its permission.
    assert (values(all_), values(some)) == ([], ["task"])
    assert [asked for asked, _ in reader.asked] == [{"a_said"}]
    reader.learn(a_said=True)
    assert values(all_) == ["secret", "task"]


def test_output_of_a_dag_that_may_not_be_read_is_not_looked_up() -> None:
    firehose, reader = Firehose(), Reader(a=False)
    subscription = follow(firehose, reader, EVERYTHING)
    firehose.dispatch([output_row(1)], cursor(2), 0.0)
    assert (values(subscription), reader.asked) == ([], [])


def test_a_filter_can_redact_values() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(EVERYTHING._replace(redacted=True), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.dispatch([output_row(1), transition(2)], cursor(3), 0.0)
    assert values(subscription) == ["withheld", "task"]


@pytest.mark.parametrize(
    ("withheld", "allowed", "expected"),
    [
        (False, None, ["resumed", "secret", "task"]),
        (True, None, ["resumed", "withheld", "task"]),
        (False, {Resource("a")}, ["resumed", "withheld", "task"]),
        (False, {Resource("a"), Resource("a", output=True)}, ["resumed", "secret", "task"]),
        (False, set(), ["resumed"]),
    ],
)
def test_a_replay_has_the_values_that_may_be_read(
    allowed: set[Resource] | None, expected: list[str], *, withheld: bool
) -> None:
    history, wanted = [output_row(1), transition(2)], EVERYTHING._replace(redacted=withheld)
    assert required_resources(wanted, history) == {Resource("a"), Resource("a", output=True)}
    assert [
        _value(wire) for wire in replay(wanted, Gap(ResumeToken(cursor(1)), cursor(5), history), allowed)
    ] == expected


def test_no_look_up_is_made_after_the_last_client_has_left() -> None:
    firehose, reader = Firehose(), Reader()
    subscription = follow(firehose, reader)
    firehose.dispatch([transition(1)], cursor(2), 0.0)
    firehose.remove(subscription)
    # Airflow did not answer.
    reader.learn()
    assert reader.asked == []
