from __future__ import annotations

import json
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.replay import Gap
from stream_server.domain.transition import TransitionKind
from stream_server.hub.filters import Filter, Resource
from stream_server.hub.firehose import BOOKMARK_SECONDS, MAX_PENDING_TRANSITIONS, Firehose, replay, required_resources
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumeToken
from stream_server.protocol.frames import Reset
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


@pytest.mark.parametrize(
    ("wanted", "is_sent"),
    [
        (Filter(), True),
        (Filter(states=frozenset({"failed"})), True),
        (Filter(task_ids=frozenset({"t"})), True),
        (Filter(types=frozenset({"task"})), True),
        (Filter(types=frozenset({"run"})), False),
        (Filter(run_ids=frozenset({"other"})), False),
    ],
)
def test_a_run_with_other_tasks_is_reset(wanted: Filter, *, is_sent: bool) -> None:
    changed = transition(2, task_id=None)._replace(kind=TransitionKind.RUN_CHANGED, state=None)
    firehose, subscription = Firehose(), Subscription(1000)
    firehose.add(wanted, subscription, cursor(2), now=0)
    subscription.take()
    firehose.dispatch([changed], cursor(3), now=1)
    frames = [wire.frame for wire in subscription.take()]
    reset = Reset(dag_id="a", run_id="r", reason="run_changed")
    assert frames == ([reset] if is_sent else [])
    replayed = [wire.frame for wire in replay(wanted, Gap(ResumeToken(cursor(2)), cursor(3), [changed]))]
    assert replayed[1:] == frames


def test_each_client_gets_matching_frames_and_the_position() -> None:
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


def test_a_client_without_matches_gets_the_position_at_intervals() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(dag_ids=frozenset({"b"})), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.dispatch([transition(1)], cursor(2), BOOKMARK_SECONDS / 2)
    assert sent_types(subscription) == []
    firehose.dispatch([], cursor(2), BOOKMARK_SECONDS + 1)
    assert sent_types(subscription) == [], "the position is unchanged"
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


@pytest.mark.parametrize("named", ["a", "missing"])
def test_a_replay_ends_where_the_live_stream_starts(named: str) -> None:
    history = [transition(2), transition(3), transition(7)]
    wires = replay(Filter(dag_ids=frozenset({named})), Gap(ResumeToken(cursor(2)), cursor(5), history))
    assert [wire.type for wire in wires] == ["resumed", *(["task", "task"] if named == "a" else [])]
    assert last_cursor(wires) == cursor(5)


class KnownPermissions:
    """Known permissions: `a` for the runs of a DAG, `a_output` for the output of its tasks."""

    def __init__(self, **known: bool) -> None:
        self.known = known
        self.max_wait = 10.0
        self.requested: list[tuple[set[str], Callable[[], None]]] = []

    def may_read(self, resource: Resource) -> bool | None:
        return self.known.get(_name(resource))

    def request_decision(self, resources: Collection[Resource], then: Callable[[], None]) -> None:
        self.requested.append((set(map(_name, resources)), then))

    async def filter_readable(self, resources: Collection[Resource]) -> Collection[Resource]:
        return {resource for resource in resources if self.known.get(_name(resource))}

    def update(self, **known: bool) -> None:
        """Add permissions, and call all waiting callbacks."""
        self.known |= known
        requested, self.requested = self.requested, []
        for _, then in requested:
            then()


def _name(resource: Resource) -> str:
    return f"{resource.dag_id}_output" if resource.output else resource.dag_id


def follow(firehose: Firehose, permissions: KnownPermissions, wanted: Filter | None = None) -> Subscription:
    subscription = Subscription(10**6)
    firehose.add(wanted or Filter(), subscription, cursor(1), 0.0, permissions)
    sent_types(subscription)
    return subscription


def dag_ids(subscription: Subscription) -> list[str]:
    return [getattr(wire.frame, "dag_id", "") for wire in subscription.take()]


def test_transitions_that_may_not_be_read_are_not_sent() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True, b=False)
    subscription = follow(firehose, permissions)
    firehose.dispatch([transition(1), transition(2, "b"), transition(3)], cursor(4), 0.0)
    firehose.dispatch([transition(4, "b")], cursor(5), 0.0)
    assert dag_ids(subscription) == ["a", "a"]


def test_batches_wait_in_order_until_permissions_are_known() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True)
    subscription = follow(firehose, permissions)
    for seq, dag_id in enumerate(["a", "new", "a", "newer", "a"], start=1):
        firehose.dispatch([transition(seq, dag_id)], cursor(seq + 1), float(seq))
    assert dag_ids(subscription) == ["a"]
    assert [requested for requested, _ in permissions.requested] == [{"new"}]
    permissions.update(new=True)
    assert dag_ids(subscription) == ["new", "a"]
    permissions.update(newer=False)
    assert dag_ids(subscription) == ["a"]
    assert permissions.requested == []


def test_transitions_that_do_not_match_are_not_looked_up() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True)
    subscription = follow(firehose, permissions, Filter(dag_ids=frozenset({"a"})))
    firehose.dispatch([transition(1), transition(2, "b")], cursor(3), 0.0)
    assert (dag_ids(subscription), permissions.requested) == (["a"], [])


def test_a_new_client_gets_no_pending_batches() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True)
    first = follow(firehose, permissions)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    second = follow(firehose, permissions)
    firehose.dispatch([transition(2)], cursor(3), 0.0)
    removed = follow(firehose, permissions)
    firehose.remove(removed)
    permissions.update(new=True)
    assert (dag_ids(first), dag_ids(second), dag_ids(removed)) == (["new", "a"], ["a"], [])


def test_pending_transitions_are_bounded() -> None:
    firehose, permissions = Firehose(), KnownPermissions()
    subscription = follow(firehose, permissions)
    for batch in range(3):
        firehose.dispatch(
            [transition(seq, "new") for seq in range(MAX_PENDING_TRANSITIONS // 2)], cursor(batch + 2), 0.0
        )
    assert subscription.closed is not None
    assert (subscription.closed.code, subscription.closed.reconnect) == (CloseCode.UNAVAILABLE, True)


def test_a_batch_that_waits_too_long_disconnects_only_its_group() -> None:
    firehose, unknown, permissions = Firehose(), KnownPermissions(), KnownPermissions(new=True)
    waiting, other_filter = follow(firehose, unknown), follow(firehose, unknown, Filter(dag_ids=frozenset({"b"})))
    other_caller = follow(firehose, permissions)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    for seconds in (5.0, 10.0):
        # The permission is still unknown, and is requested again.
        unknown.update()
        firehose.dispatch([], cursor(2), seconds)
        assert waiting.closed is None
    assert len(unknown.requested) == 1
    firehose.dispatch([transition(2, "new")], cursor(3), 10.1)
    assert waiting.closed is not None
    assert (waiting.closed.code, waiting.closed.reconnect) == (CloseCode.UNAVAILABLE, True)
    unknown.update()
    assert unknown.requested == []
    assert (other_filter.closed, dag_ids(other_caller)) == (None, ["new", "new"])


def test_a_permission_in_time_ends_the_wait() -> None:
    firehose, permissions = Firehose(), KnownPermissions()
    subscription = follow(firehose, permissions)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    firehose.dispatch([transition(2, "newer")], cursor(3), 9.0)
    permissions.update(new=True)
    firehose.dispatch([], cursor(3), 19.0)
    assert (subscription.closed, dag_ids(subscription)) == (None, ["new"])


def test_updated_permissions_apply_from_the_next_batch() -> None:
    firehose, ada, bob = Firehose(), KnownPermissions(a=True, b=False), KnownPermissions(a=False, b=True)
    subscription = follow(firehose, ada)
    firehose.update_permissions(subscription, bob, 0.0)
    firehose.dispatch([transition(1), transition(2, "b")], cursor(3), 0.0)
    assert dag_ids(subscription) == ["b"]
    firehose.dispatch([transition(3, "new")], cursor(4), 0.0)
    firehose.update_permissions(subscription, ada, 0.0)
    assert subscription.closed is not None
    assert subscription.closed.code == CloseCode.ACCESS_CHANGED


def test_a_resync_replaces_pending_batches() -> None:
    firehose, permissions = Firehose(), KnownPermissions()
    subscription = follow(firehose, permissions)
    firehose.dispatch([transition(1, "new")], cursor(2), 0.0)
    firehose.resync("transitions_lost", cursor(3))
    permissions.update(new=True)
    assert sent_types(subscription) == ["reset"]


EVERYTHING = Filter(types=frozenset({"task", "chunk"}))


def values(subscription: Subscription) -> list[object]:
    """Return the value of output, `withheld` without one, and `task` for transitions."""
    return [_value(wire) for wire in subscription.take()]


def _value(wire: Wire) -> object:
    frame = json.loads(wire.json)
    return "withheld" if frame.get("withheld") else frame.get("value", frame["type"])


def test_values_are_sent_to_callers_that_may_read_them() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True, a_output=True, b=True, b_output=False)
    subscription = follow(firehose, permissions, EVERYTHING)
    firehose.dispatch([output_row(1), output_row(2, "b"), transition(3)], cursor(4), 0.0)
    assert values(subscription) == ["secret", "withheld", "task"]


def test_values_wait_until_their_permission_is_known() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=True)
    all_, some = follow(firehose, permissions, EVERYTHING), follow(firehose, permissions)
    firehose.dispatch([output_row(1), transition(2)], cursor(3), 0.0)
    # A client without output does not wait for the permission for it.
    assert (values(all_), values(some)) == ([], ["task"])
    assert [requested for requested, _ in permissions.requested] == [{"a_output"}]
    permissions.update(a_output=True)
    assert values(all_) == ["secret", "task"]


def test_output_of_a_dag_that_may_not_be_read_is_not_looked_up() -> None:
    firehose, permissions = Firehose(), KnownPermissions(a=False)
    subscription = follow(firehose, permissions, EVERYTHING)
    firehose.dispatch([output_row(1)], cursor(2), 0.0)
    assert (values(subscription), permissions.requested) == ([], [])


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


def test_no_look_up_is_made_after_the_last_client_disconnects() -> None:
    firehose, permissions = Firehose(), KnownPermissions()
    subscription = follow(firehose, permissions)
    firehose.dispatch([transition(1)], cursor(2), 0.0)
    firehose.remove(subscription)
    # Airflow has not responded.
    permissions.update()
    assert permissions.requested == []
