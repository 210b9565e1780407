from __future__ import annotations

import sys
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from stream_server.hub.subscription import QueueTotals, Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close, End, Ping, Reset
from stream_server.protocol.wire import Wire
from support.builders import KEY, types

LIMIT = 1000


def frame(size: int) -> Wire:
    """A frame whose JSON has exactly this size in bytes."""
    empty = Wire(Reset(dag_id="", run_id="", reason="cleared"))
    wire = Wire(Reset(dag_id="x" * (size - len(empty.json)), run_id="", reason="cleared"))
    assert len(wire.json) == size
    return wire


def end() -> Wire:
    return Wire(End(dag_id=KEY.dag_id, run_id=KEY.run_id, state="success", outcome="result"))


def taken(subscription: Subscription) -> list[str]:
    return types([wire.frame for wire in subscription.take()])


sizes = st.integers(60, 400)


@given(st.lists(st.lists(sizes, min_size=1, max_size=4) | st.none(), max_size=12))
def test_only_an_empty_queue_may_exceed_the_bound(pushes: list[list[int] | None]) -> None:
    subscription = Subscription(LIMIT)
    waiting = 0
    for push in pushes:
        if push is None:
            subscription.take()
            waiting = 0
            continue
        behind = waiting > 0
        subscription.push(map(frame, push))
        waiting += sum(push)
        if behind and waiting > LIMIT:
            assert subscription.closed is not None
            assert subscription.closed.code == CloseCode.SLOW
            assert taken(subscription) == ["close"]
            return
        assert subscription.closed is None
        assert subscription.statistics().queued_bytes == waiting
    assert not subscription.is_complete


@given(st.lists(st.lists(sizes, max_size=2), max_size=8))
def test_frames_are_taken_in_the_order_in_which_they_were_pushed(pushes: list[list[int]]) -> None:
    subscription = Subscription(10_000)
    wires = [[frame(size) for size in push] for push in pushes]
    for push in wires:
        subscription.push(push)
    assert subscription.statistics().queued_frames == sum(map(len, wires))
    assert [*subscription.take()] == [wire for push in wires for wire in push]
    assert subscription.statistics() == (0, 0)


def test_exactly_the_bound_is_allowed() -> None:
    subscription = Subscription(LIMIT)
    subscription.push([frame(500), frame(500)])
    assert subscription.closed is None


def test_a_slow_client_gets_only_a_close_with_reconnect() -> None:
    subscription = Subscription(LIMIT)
    subscription.push([frame(500)])
    subscription.push([frame(501)])
    (wire,) = subscription.take()
    assert isinstance(wire.frame, Close)
    assert (wire.frame.code, wire.frame.reconnect) == (4002, True)
    assert wire.token is None
    assert subscription.is_finished


def test_the_end_of_a_stream_is_delivered_beyond_the_bound() -> None:
    subscription = Subscription(LIMIT)
    subscription.push([frame(900), frame(900), end()])
    assert subscription.closed is None
    assert taken(subscription) == ["reset", "reset", "end"]


def test_after_the_end_no_frame_is_accepted() -> None:
    subscription = Subscription(LIMIT)
    subscription.push([end()])
    subscription.push([frame(100)])
    subscription.disconnect(CloseCode.DRAINING, "too late")
    assert subscription.closed is None
    assert taken(subscription) == ["end"]


def test_after_a_disconnect_no_frame_is_accepted() -> None:
    subscription = Subscription(LIMIT)
    subscription.disconnect(CloseCode.DRAINING, "bye", retry_ms=700)
    subscription.disconnect(CloseCode.INTERNAL, "again")
    subscription.push([frame(100), end()])
    (wire,) = subscription.take()
    assert wire.frame == Close(code=4001, reason="bye", reconnect=True, retry_ms=700)
    assert subscription.closed is wire.frame


def test_a_close_follows_the_pending_frames() -> None:
    subscription = Subscription(LIMIT)
    subscription.push([frame(100)])
    subscription.disconnect(CloseCode.DRAINING, "bye")
    assert taken(subscription) == ["reset", "close"]


def test_a_subscription_is_finished_when_all_frames_are_taken() -> None:
    subscription = Subscription(LIMIT)
    assert not subscription.is_finished
    subscription.push([end()])
    assert subscription.is_complete
    assert not subscription.is_finished
    subscription.take()
    assert subscription.is_finished


def test_notify_is_called_for_each_push_and_for_disconnect() -> None:
    notices: list[str] = []
    subscription = Subscription(LIMIT)
    subscription.on_due(lambda: notices.append("due"))
    assert notices == []
    subscription.push([Wire(Ping())])
    subscription.disconnect(CloseCode.DRAINING, "bye")
    assert notices == ["due", "due"]
    subscription.push([Wire(Ping())])
    assert notices == ["due", "due"]


def test_a_slow_client_is_disconnected_once() -> None:
    notices: list[str] = []
    subscription = Subscription(LIMIT)
    subscription.on_due(lambda: notices.append("due"))
    subscription.push([frame(1001)])
    assert notices == ["due"]


def test_notify_is_called_at_once_for_frames_that_are_due() -> None:
    notices: list[str] = []
    subscription = Subscription(LIMIT)
    subscription.push([Wire(Ping())])
    subscription.on_due(lambda: notices.append("due"))
    assert notices == ["due"]


def test_close_releases_in_reverse_order_and_once() -> None:
    subscription = Subscription(LIMIT)
    released: list[str] = []
    for name in ("hub", "permission", "slot"):
        subscription.on_close(partial(released.append, name))
    subscription.close()
    assert released == ["slot", "permission", "hub"]
    subscription.close()
    assert len(released) == 3


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["push", "take", "prepend", "disconnect", "close"]), sizes))
)
def test_totals_are_the_sums_of_all_open_subscriptions(steps: list[tuple[int, str, int]]) -> None:
    totals = QueueTotals()
    ones = [Subscription(LIMIT, totals) for _ in range(3)]
    for number, step, size in steps:
        match step:
            case "push":
                wires = [frame(size)]
                for one in ones[number:]:
                    one.push(wires)
            case "take":
                ones[number].take()
            case "prepend":
                ones[number].prepend([frame(size)])
            case "disconnect":
                ones[number].disconnect(CloseCode.AGED, "old")
            case _:
                ones[number].close()
                assert ones[number].statistics() == (0, 0)
        each = [one.statistics() for one in ones]
        assert totals.frames == sum(one.queued_frames for one in each)
        assert totals.bytes == sum(one.queued_bytes for one in each)


def test_frames_are_released_once_all_clients_have_taken_them() -> None:
    totals = QueueTotals()
    first, second = Subscription(LIMIT, totals), Subscription(LIMIT, totals)
    wires = [frame(60)]
    held = sys.getrefcount(wires)
    first.push(wires)
    second.push(wires)
    assert (totals.frames, totals.bytes) == (2, 120)
    first.take()
    second.take()
    assert sys.getrefcount(wires) == held
