"""The hub after a resync, or with another database: its runs are loaded again."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import RunNotFound, Unavailable
from stream_server.hub import watched_runs
from stream_server.hub.filters import Filter
from stream_server.hub.run_feed import RunFeed
from stream_server.protocol.cursor import JournalRow, ResumePoint, ResumeToken
from stream_server.protocol.frames import Reset
from support.builders import KEY, types
from support.loaded_hub import UNTIL_RUN, LoadedHub, taken, watching
from support.waiting import eventually_async


async def test_a_resync_starts_few_reloads_in_one_step(loaded: LoadedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_runs, "RELOADS_AT_ONCE", 2)
    keys = [RunKey(KEY.dag_id, f"run {number}") for number in range(7)]
    joining = [asyncio.create_task(loaded.hub.subscribe(key, UNTIL_RUN)) for key in keys]
    for number in range(len(keys)):
        await loaded.load(number + 1)
    subscriptions = await asyncio.gather(*joining)
    loaded.hub.resync(loaded.history.cursor(), "transitions_lost")
    loaded.hub.resync(loaded.history.cursor(), "journal_changed")
    subscriptions[5].close()
    late = asyncio.create_task(loaded.hub.subscribe(keys[6], UNTIL_RUN))
    started = [len(loaded.source.loads)]
    while len(loaded.source.loads) < 2 * len(keys) - 1:
        await asyncio.sleep(0)
        started.append(len(loaded.source.loads))
    assert max(after - before for before, after in pairwise(started)) <= 2
    for number in range(len(keys), 2 * len(keys) - 1):
        await loaded.load(number + 1)
    subscriptions.append(await late)
    del subscriptions[5]
    await eventually_async(lambda: all(loaded.hub.run_state(key) is not None for key in keys[:5] + keys[6:]))
    assert [taken(subscription) for subscription in subscriptions] == [
        *[["snapshot", "reset", "snapshot"]] * 6,
        ["snapshot"],
    ]
    for subscription in subscriptions:
        subscription.close()
    assert loaded.hub.statistics().runs == 0


async def test_a_run_that_is_lost_before_its_reload_starts_is_not_waited_for(
    loaded: LoadedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_runs, "RELOADS_AT_ONCE", 1)
    others = [RunKey(KEY.dag_id, f"run {number}") for number in range(5)]
    joining = [asyncio.create_task(loaded.hub.subscribe(key, UNTIL_RUN)) for key in [*others, KEY]]
    for number in range(len(joining)):
        await loaded.load(number + 1)
    subscriptions = await asyncio.gather(*joining)
    loaded.hub.resync(loaded.history.cursor(), "transitions_lost")
    late = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    await asyncio.sleep(0)
    monkeypatch.setattr(RunFeed, "apply", lambda *_: 1 / 0)
    loaded.history.set_task("ask", "scheduled")
    loaded.dispatch()
    with pytest.raises(Unavailable, match="lost the state"):
        await late
    assert not loaded.hub.is_watched(KEY)
    for subscription in subscriptions:
        subscription.close()


async def test_two_resyncs_lose_no_transition_between_them(loaded: LoadedHub) -> None:
    async with watching(loaded) as subscription:
        subscription.take()
        for number in (2, 3):
            loaded.hub.resync(loaded.history.cursor(), "transitions_lost")
            await loaded.nth_load(number)
        before = (loaded.history.state(), loaded.history.cursor())
        await loaded.load(2)
        await eventually_async(loaded.source.loads[1].done)
        loaded.history.set_task("ask", "scheduled")
        loaded.dispatch()
        loaded.source.loads[2].set_result(before)
        await eventually_async(lambda: subscription.statistics().queued_frames >= 2)
        loaded.history.set_task("ask", "queued")
        loaded.dispatch()
        frames = [wire.frame for wire in subscription.take()]
    assert types(frames) == ["reset", "snapshot", "task"]
    assert {task.state for task in frames[1].tasks if task.task_id == "ask"} == {"scheduled"}  # type: ignore[union-attr]


async def test_after_a_reconnect_runs_ahead_of_the_cursor_are_loaded_again(loaded: LoadedHub) -> None:
    """The tail resumes at its position when the connection was lost; rows read later may no longer exist."""
    position = loaded.history.cursor()
    loaded.history.set_run("running")
    async with watching(loaded) as subscription:
        await loaded.hub.reconnect(position)
        assert loaded.source.reconnects == 1
        assert taken(subscription) == ["snapshot"]
        await loaded.load(2)
        await eventually_async(lambda: subscription.statistics().queued_frames > 0, what="the reset is sent")
        assert taken(subscription) == ["reset", "snapshot"]


async def test_after_a_reconnect_runs_that_the_cursor_covers_are_kept(loaded: LoadedHub) -> None:
    async with watching(loaded) as subscription:
        taken(subscription)
        loaded.history.set_run("running")
        loaded.dispatch()
        await loaded.hub.reconnect(loaded.history.cursor())
        loaded.history.set_task("ask", "scheduled")
        loaded.dispatch()
        assert taken(subscription) == ["run", "task"]
        assert len(loaded.source.loads) == 1


async def test_a_load_that_spans_a_reconnect_is_ignored(loaded: LoadedHub) -> None:
    joining = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    old_load = await loaded.nth_load(1)
    await loaded.hub.reconnect(loaded.history.cursor())
    await loaded.nth_load(2)
    old_load.set_exception(RunNotFound(*KEY))
    await loaded.load(2)
    assert taken(await joining)[-1] == "snapshot"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_token_of_a_lost_history_is_not_resumed(loaded: LoadedHub, *, is_lost: bool) -> None:
    """After a failover to a server that was behind, the position of a token may be that of other transactions."""
    row = JournalRow(seq=1, at=1)
    token = ResumeToken(replace(loaded.history.cursor(), row=row))
    if is_lost:
        loaded.source.lost_rows.add(row)
    resuming = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN, resume_from=ResumePoint(token)))
    await loaded.load()
    if not is_lost:
        await eventually_async(lambda: bool(loaded.source.histories))
        loaded.source.histories[0].set_result([])
    with closing(await resuming) as subscription:
        frames = [wire.frame for wire in subscription.take()]
    assert types(frames) == (["reset", "snapshot"] if is_lost else ["resumed"])
    assert [frame.reason for frame in frames if isinstance(frame, Reset)] == (["cursor_foreign"] if is_lost else [])


async def test_a_token_of_a_lost_history_is_not_resumed_for_many_runs(loaded: LoadedHub) -> None:
    row = JournalRow(seq=1, at=1)
    loaded.source.lost_rows.add(row)
    token = ResumeToken(replace(loaded.history.cursor(), row=row))
    with closing(await loaded.hub.subscribe_firehose(Filter(), resume_from=ResumePoint(token))) as subscription:
        frames = [wire.frame for wire in subscription.take()]
    assert [frame.reason for frame in frames if isinstance(frame, Reset)] == ["cursor_foreign"]


async def test_a_run_of_a_journal_that_the_tail_has_not_reached_is_not_watched(loaded: LoadedHub) -> None:
    """Positions of two journals can't be compared: transitions would be lost, or applied twice."""
    subscribing = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    other = replace(loaded.history.cursor(), epoch="another")
    (await loaded.nth_load(1)).set_result((loaded.history.state(), other))
    with pytest.raises(Unavailable, match="database has changed"):
        await subscribing
    again = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    await loaded.load(2)
    with closing(await again) as subscription:
        assert taken(subscription) == ["snapshot"]


async def test_a_reload_waits_until_the_tail_has_reached_the_same_journal(
    loaded: LoadedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_runs, "RETRY_SECONDS", 0.001)
    async with watching(loaded) as subscription:
        assert taken(subscription) == ["snapshot"]
        other = replace(loaded.history.cursor(), epoch="another")
        loaded.hub.resync(loaded.history.cursor(), "journal_changed")
        (await loaded.nth_load(2)).set_result((loaded.history.state(), other))
        await loaded.nth_load(3)
        assert taken(subscription) == []
        loaded.hub.resync(other, "journal_changed")
        (await loaded.nth_load(4)).set_result((loaded.history.state(), other))
        await eventually_async(lambda: subscription.statistics().queued_frames == 2)
        assert taken(subscription) == ["reset", "snapshot"]
