"""A prediction that is updated in several steps, between which batches arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain import run_state
from stream_server.hub import run_feed
from support.followed_run import FollowedRun, frames, taken
from support.run_moves import Move, run_histories


@given(run_histories, st.lists(st.booleans(), max_size=100))
def test_a_prediction_that_is_updated_in_steps_changes_no_frame(moves: list[Move], pauses: list[bool]) -> None:
    at_once, in_steps = FollowedRun(), FollowedRun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state, "MAX_LATE_JUDGEMENTS", 0)
        followed = [(run, run.join()) for run in (at_once, in_steps)]
        paused = iter(pauses)
        for move in moves:
            patch.setattr(run_feed, "MAX_JUDGEMENTS", None)
            at_once.apply_move_or_read(move)
            patch.setattr(run_feed, "MAX_JUDGEMENTS", 0)
            in_steps.apply_move_or_read(move)
            while in_steps.feed.is_updating and not next(paused, False):
                in_steps.feed.update(at_most=1)
        for run, _ in followed:
            run.catch_up()
        assert [frames(one) for _, one in followed[1:]] == [frames(one) for _, one in followed[:1]]


@pytest.fixture
def _slow_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each prediction take more than one step, as in a large run."""
    monkeypatch.setattr(run_state, "MAX_LATE_JUDGEMENTS", 0)
    monkeypatch.setattr(run_feed, "MAX_JUDGEMENTS", 0)


@pytest.mark.usefixtures("_slow_predictions")
def test_a_batch_waits_while_the_prediction_is_updated() -> None:
    run = FollowedRun()
    subscription = run.join()
    subscription.take()
    run.history.set_task("ask", "failed")
    run.read()
    run.history.set_task("answer", "upstream_failed")
    run.read()
    assert taken(subscription) == []
    while run.feed.is_updating:
        run.feed.update(at_most=1)
    assert taken(subscription) == ["task", "failure", "task"]


@pytest.mark.usefixtures("_slow_predictions")
def test_all_waiting_batches_are_applied_after_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FollowedRun()
    subscription = run.join()
    subscription.take()
    run.history.set_task("ask", "failed")
    run.read()
    monkeypatch.setattr(run_feed, "MAX_JUDGEMENTS", None)
    for state in ("scheduled", "queued", "running"):
        run.history.set_task("clean_up", state)
        run.read()
    while run.feed.is_updating:
        run.feed.update()
    assert taken(subscription) == ["task", "failure", "task", "task", "task"]


@pytest.mark.usefixtures("_slow_predictions")
def test_a_subscription_finishes_the_update_first() -> None:
    run = FollowedRun()
    first = run.join()
    first.take()
    run.history.set_task("ask", "failed")
    run.read()
    second = run.join()
    assert taken(first) == ["task", "failure"]
    assert taken(second) == ["snapshot", "failure"]
