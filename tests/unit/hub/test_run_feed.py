from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import UnknownTask
from stream_server.hub.run_feed import RunFeed
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import Close, End, Reset, Result, RunTransition, Snapshot, TaskTransition
from stream_server.protocol.wire import Wire
from support.builders import EPOCH, KEY, History, comparable_state, graph, results_of, types
from support.followed_run import UNTIL_RUN, FollowedRun, frames, taken
from support.run_moves import Move, apply_move, run_histories


def cursor_of(rows: Sequence[Transition]) -> JournalPosition:
    """The snapshot in which exactly these rows are visible."""
    committed = {row.txid for row in rows}
    xmax = max(committed) + 1
    xip = tuple(txid for txid in range(101, xmax) if txid not in committed)
    return JournalPosition(EPOCH, min(xip, default=xmax), xmax, xip)


def relabelled(rows: Sequence[Transition], txids: Sequence[int]) -> list[Transition]:
    """The same rows, from transactions that began in another order than they committed."""
    label = dict(zip(sorted(set(txids)), txids, strict=True))
    return [row._replace(txid=label[row.txid]) for row in rows]


@given(run_histories, st.sets(st.integers(0, 60), min_size=1, max_size=5))
def test_subscriptions_with_the_same_options_get_the_same_frames(moves: list[Move], joins: set[int]) -> None:
    run = FollowedRun()
    first = run.join()
    received = [*first.take()]
    others: list[tuple[int, Subscription]] = []
    for number, move in enumerate(moves):
        run.apply_move_or_read(move)
        received += first.take()
        if number in joins and not first.is_complete:
            other = run.join()
            first_frames = [kind for kind in taken(other) if kind != "chunk"]
            assert first_frames in (["snapshot"], ["snapshot", "result"], ["snapshot", "failure"])
            others.append((len(received), other))
    run.catch_up()
    received += first.take()
    for since, other in others:
        assert [*other.take()] == received[since:], "the same objects, encoded once"


@given(run_histories, run_histories, st.data())
def test_rows_that_the_load_saw_are_not_applied_twice(
    before: list[Move], after: list[Move], data: st.DataObject
) -> None:
    history = History()
    for move in before:
        if move[0] != "delete_run":
            apply_move(history, move)
    state, seen = history.state(), len(history.journal)
    for move in after:
        apply_move(history, move)
    txids = sorted({row.txid for row in history.journal})
    journal = relabelled(history.journal, data.draw(st.permutations(txids)))
    lag = data.draw(st.integers(0, seen), label="rows that the tail had read before")
    started = data.draw(st.integers(lag, len(journal)), label="rows that it had read when the load was done")
    loaded_at = cursor_of(journal[:seen])
    expected = history.state()

    feed, subscription = RunFeed(KEY), Subscription(1_000_000)
    feed.apply(journal[lag:started], cursor_of(journal))
    feed.start(state, loaded_at)
    feed.add_subscription(UNTIL_RUN, subscription, cursor_of(journal[: max(started, 1)]))
    is_complete_at_load = subscription.is_complete
    feed.apply(journal[started:], cursor_of(journal))

    assert feed.run_state is not None
    assert comparable_state(feed.run_state)["tasks"] == comparable_state(expected)["tasks"]
    assert feed.run_state.info == expected.info
    wires = subscription.take()
    assert all(wire.token.position.covers(loaded_at) for wire in wires if wire.token)
    seqs = [wire.frame.seq for wire in wires if isinstance(wire.frame, TaskTransition | RunTransition)]
    new = [row.seq for row in journal[max(seen, started) :] if row.kind in {TransitionKind.TASK, TransitionKind.RUN}]
    assert seqs == ([] if is_complete_at_load else new)


def test_the_first_subscription_gets_a_snapshot_with_its_token() -> None:
    run = FollowedRun()
    (wire,) = run.join().take()
    assert isinstance(wire.frame, Snapshot)
    assert wire.token == ResumeToken(run.history.cursor())


def test_subscriptions_between_two_changes_share_their_first_frames() -> None:
    run = FollowedRun()
    run.join()
    one, two = run.join().take(), run.join().take()
    assert one == two
    run.history.set_run("running")
    run.read()
    assert run.join().take() != one


def test_only_the_last_frame_of_a_batch_carries_the_cursor() -> None:
    run = FollowedRun()
    subscription = run.join()
    subscription.take()
    run.history.start("ask")
    run.read()
    wires = subscription.take()
    assert types([wire.frame for wire in wires]) == ["task", "task", "task"]
    assert [wire.token for wire in wires] == [None, None, ResumeToken(run.history.cursor())]


def test_the_last_frame_of_a_stream_carries_the_cursor_of_its_end() -> None:
    run = FollowedRun()
    subscription = run.join(WatchOptions())
    run.history.run_task("answer")
    run.catch_up()
    last = subscription.take()[-1]
    assert isinstance(last.frame, End)
    assert last.token == ResumeToken(run.history.cursor(), "result", has_ended=True)


def test_groups_with_other_options_are_independent() -> None:
    run = FollowedRun()
    ask, answer = run.join(WatchOptions(("ask",))), run.join(WatchOptions(("answer",)))
    run.history.run_task("ask", 1)
    run.catch_up()
    assert results_of(frames(ask)) == [{"ask": 1}]
    assert ask.is_complete
    assert results_of(frames(answer)) == []
    run.history.run_task("answer", 2)
    run.catch_up()
    assert results_of(frames(answer)) == [{"answer": 2}]


def test_a_subscription_after_the_end_gets_everything_at_once() -> None:
    run = FollowedRun()
    run.join(WatchOptions())
    run.history.run_task("answer", 1)
    run.catch_up()
    assert run.feed.groups == {}
    again = run.join(WatchOptions())
    run.fetch()
    assert taken(again) == ["snapshot", "result", "end"]


def test_an_unknown_task_is_refused_and_adds_no_group() -> None:
    run = FollowedRun()
    with pytest.raises(UnknownTask) as refused:
        run.join(WatchOptions(("ask", "missing")))
    assert (refused.value.task_id, refused.value.known) == ("missing", ["answer", "ask", "clean_up"])
    assert run.feed.groups == {}


def test_values_read_for_another_group_are_not_enough() -> None:
    run = FollowedRun()
    both = run.join(WatchOptions(("ask", "answer")))
    run.history.run_task("ask", 1)
    run.history.run_task("answer", 2)
    run.read()
    both.take()
    assert run.feed.wanted_tasks == {"ask", "answer"}
    run.feed.add_values(frozenset({"ask"}), run.history.values({"ask"}), run.history.cursor())
    assert taken(both) == []
    run.fetch()
    assert taken(both) == ["result", "end"]


def test_a_removed_subscription_gets_nothing_and_causes_no_reads() -> None:
    run = FollowedRun()
    removed, kept = run.join(), run.join()
    removed.take()
    run.feed.remove_subscription(removed)
    run.history.run_task("answer")
    run.read()
    assert taken(removed) == []
    assert run.feed.subscriptions == [kept]
    run.feed.remove_subscription(kept)
    assert run.feed.wanted_tasks == frozenset()
    assert run.feed.groups == {}


def test_a_slow_client_is_disconnected_and_the_others_continue() -> None:
    run = FollowedRun()
    slow, fast = run.join(limit=1500), run.join()
    for _ in range(10):
        run.history.start("ask")
        run.history.set_task("ask", "up_for_retry")
        run.read()
    (close,) = frames(slow)
    assert isinstance(close, Close)
    assert close.code == CloseCode.SLOW
    assert taken(fast) == ["snapshot"] + ["task"] * 40


def test_a_disconnected_feed_pushes_nothing() -> None:
    run = FollowedRun()
    one, two = run.join(), run.join(WatchOptions())
    run.feed.disconnect(CloseCode.INTERNAL, "lost")
    run.history.run_task("answer")
    run.catch_up()
    assert [taken(one), taken(two)] == [["snapshot", "close"]] * 2
    assert run.feed.subscriptions == []


def test_transitions_during_a_load_are_applied_after_it() -> None:
    history = History()
    state, loaded_at = history.state(), history.cursor()
    feed = RunFeed(KEY)
    history.start("ask")
    feed.apply(history.journal, history.cursor())
    assert (feed.run_state, state.tasks["ask"][-1].state) == (None, None)
    feed.start(state, loaded_at)
    assert (feed.run_state, state.tasks["ask"][-1].state) == (state, "running")


def test_pending_transitions_are_dropped_with_their_journal() -> None:
    history = History()
    history.start("ask")
    feed = RunFeed(KEY)
    feed.apply(history.journal, history.cursor())
    feed.restart_loading()
    other = History()
    feed.start(other.state(), JournalPosition("07e4", 1, 1))
    assert feed.run_state is not None
    assert feed.run_state.tasks["ask"][-1].state is None


def test_a_subscription_ahead_of_the_tail_has_the_position_of_the_load() -> None:
    history = History()
    behind = history.cursor()
    history.start("ask")
    feed, subscription = RunFeed(KEY), Subscription(10_000)
    feed.start(history.state(), history.cursor())
    feed.add_subscription(UNTIL_RUN, subscription, behind)
    (wire,) = subscription.take()
    assert wire.token == ResumeToken(history.cursor())


def test_a_resync_resets_all_subscriptions() -> None:
    run = FollowedRun()
    subscriptions = [run.join(), run.join(), run.join(WatchOptions())]
    run.history.run_task("answer", "old")
    run.catch_up()
    for subscription in subscriptions:
        subscription.take()
    other, position = History(graph({"answer": []}, {})), JournalPosition("07e4", 500, 500)
    run.feed.restart_loading()
    assert run.feed.run_state is None
    run.feed.start(other.state(), position)
    run.feed.resync("journal_changed", position)
    for subscription in subscriptions[:2]:
        wires: Sequence[Wire] = subscription.take()
        reset, snapshot = (wire.frame for wire in wires)
        assert isinstance(reset, Reset)
        assert reset.reason == "journal_changed"
        assert isinstance(snapshot, Snapshot)
        assert [task.task_id for task in snapshot.tasks] == ["answer"]
        assert wires[-1].token == ResumeToken(position)
    assert taken(subscriptions[2]) == [], "the stream had ended"


def test_a_resync_sends_a_known_result_again() -> None:
    run = FollowedRun()
    subscription = run.join()
    run.history.run_task("answer", "again")
    run.catch_up()
    subscription.take()
    run.feed.restart_loading()
    run.feed.start(run.history.state(), run.history.cursor())
    run.feed.resync("journal_changed", run.history.cursor())
    run.fetch()
    seqs = frames(subscription)
    assert types(seqs) == ["reset", "snapshot", "result"]
    assert results_of(seqs) == [{"answer": "again"}]


def test_tracker_of_a_subscription_stays_the_same_after_a_resync() -> None:
    run = FollowedRun()
    subscription = run.join()
    run.history.run_task("answer", 1)
    run.catch_up()
    tracker = subscription.tracker
    assert tracker is not None
    assert isinstance(tracker.sent_outcome, Result)
    frames(subscription)
    run.feed.resync("transitions_lost", run.history.cursor())
    assert types(frames(subscription)) == ["reset", "snapshot"], "the value is read again"
    run.fetch()
    assert subscription.tracker is tracker
    assert frames(subscription) == [tracker.sent_outcome]
