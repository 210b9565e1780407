"""The hub, with database reads that a test completes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from itertools import pairwise

import pytest

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.errors import Draining, JournalUnreachable, RunNotFound, Unavailable, UnknownTask
from stream_server.hub import watched_runs
from stream_server.hub.filters import Filter
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, JournalRow, ResumePoint, ResumeToken
from stream_server.protocol.frames import Reset, Waiting
from stream_server.server.metrics import Metrics
from support.builders import KEY, History, types
from support.waiting import eventually_async

UNTIL_RUN = WatchOptions(until="run")
OTHER = RunKey(KEY.dag_id, "another")


class Source:
    """A run source whose reads are futures that the test resolves, in the order of the reads."""

    def __init__(self) -> None:
        self.loads: list[asyncio.Future[tuple[RunState, JournalPosition]]] = []
        self.reads: list[asyncio.Future[ReturnValues]] = []
        self.histories: list[asyncio.Future[list[Transition] | None]] = []
        self.reconnects = 0
        self.lost_rows: set[JournalRow] = set()
        """Rows that the journal does not have any more, although it did not prune them."""

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        self.histories.append(asyncio.get_running_loop().create_future())
        return await self.histories[-1]

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        return cursor.row in self.lost_rows

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        self.loads.append(asyncio.get_running_loop().create_future())
        return await self.loads[-1]

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]

    async def read_waiting(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        return {}

    async def reconnect(self) -> None:
        self.reconnects += 1


class LoadedHub:
    """A hub with its source, and the history of its run."""

    def __init__(self) -> None:
        self.history = History()
        self.source = Source()
        self.hub = Hub(self.source, max_queued_bytes=100_000, observer=Metrics())
        self.hub.start(self.history.cursor())
        self._dispatched = len(self.history.journal)

    async def nth_load(self, number: int) -> asyncio.Future[tuple[RunState, JournalPosition]]:
        await eventually_async(lambda: len(self.source.loads) >= number)
        return self.source.loads[number - 1]

    async def load(self, number: int = 1) -> None:
        (await self.nth_load(number)).set_result((self.history.state(), self.history.cursor()))

    def dispatch(self) -> list[Transition]:
        """Dispatch the rows written since the last call."""
        batch = self.history.journal[self._dispatched :]
        self._dispatched = len(self.history.journal)
        self.hub.dispatch(batch, self.history.cursor())
        return batch


@pytest.fixture
async def loaded() -> AsyncIterator[LoadedHub]:
    loaded = LoadedHub()
    yield loaded
    await loaded.hub.close()


def taken(subscription: Subscription) -> list[str]:
    return types([wire.frame for wire in subscription.take()])


@asynccontextmanager
async def watching(loaded: LoadedHub, options: WatchOptions = UNTIL_RUN) -> AsyncIterator[Subscription]:
    """Watch the run; load it for the first subscription."""
    subscribing = asyncio.create_task(loaded.hub.subscribe(KEY, options))
    if not loaded.source.loads:
        await loaded.load()
    with closing(await subscribing) as subscription:
        yield subscription


async def test_no_run_can_be_watched_before_the_tail_has_started() -> None:
    hub = Hub(Source(), max_queued_bytes=1, observer=Metrics())
    with pytest.raises(JournalUnreachable):
        await hub.subscribe(KEY, UNTIL_RUN)


async def test_concurrent_subscriptions_share_a_load(loaded: LoadedHub) -> None:
    joining = [asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN)) for _ in range(20)]
    await loaded.load()
    subscriptions = await asyncio.gather(*joining)
    assert [taken(one) for one in subscriptions] == [["snapshot"]] * 20
    assert len(loaded.source.loads) == 1
    assert loaded.hub.statistics()[:2] == (1, 20)
    for one in subscriptions:
        one.close()
    assert loaded.hub.statistics()[:2] == (0, 0)


async def test_close_calls_the_callbacks_and_releases_the_run(loaded: LoadedHub) -> None:
    subscribing = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    await loaded.load()
    subscription = await subscribing
    released: list[int] = []
    subscription.on_close(lambda: released.append(loaded.hub.statistics().runs))
    subscription.close()
    assert released == [1], "released before the run"
    assert loaded.hub.statistics()[:2] == (0, 0)
    subscription.close()
    assert loaded.hub.statistics()[:2] == (0, 0)


async def test_a_missing_run_is_reported_to_all_and_loaded_again(loaded: LoadedHub) -> None:
    async def join() -> None:
        (await loaded.hub.subscribe(KEY, UNTIL_RUN)).close()

    joining = [asyncio.create_task(join()) for _ in range(3)]
    (await loaded.nth_load(1)).set_exception(RunNotFound(*KEY))
    assert [type(error) for error in await asyncio.gather(*joining, return_exceptions=True)] == [RunNotFound] * 3
    again = asyncio.create_task(join())
    await loaded.load(2)
    await again
    assert loaded.hub.statistics().runs == 0


async def test_a_cancelled_subscription_leaves_no_run_behind(loaded: LoadedHub) -> None:
    joining = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    load = await loaded.nth_load(1)
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert loaded.hub.statistics().runs == 0
    await eventually_async(load.cancelled)


async def test_unknown_tasks_leave_no_run_behind(loaded: LoadedHub) -> None:
    with pytest.raises(UnknownTask):
        async with watching(loaded, WatchOptions(result_tasks=("missing",))):
            pass
    assert loaded.hub.statistics().runs == 0


async def test_transitions_during_a_load_follow_the_snapshot(loaded: LoadedHub) -> None:
    joining = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN))
    load = await loaded.nth_load(1)
    read = (loaded.history.state(), loaded.history.cursor())
    loaded.history.set_task("ask", "scheduled")
    loaded.dispatch()
    load.set_result(read)
    subscription = await joining
    (wire,) = subscription.take()
    assert {task.state for task in wire.frame.tasks if task.task_id == "ask"} == {"scheduled"}  # type: ignore[union-attr]


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


async def test_return_values_are_read_until_postgresql_answers(
    loaded: LoadedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_server.hub.watched_runs.RETRY_SECONDS", 0)
    async with watching(loaded) as subscription:
        loaded.history.run_task("answer", 42)
        loaded.dispatch()
        await eventually_async(lambda: len(loaded.source.reads) == 1)
        loaded.source.reads[0].set_exception(JournalUnreachable("gone"))
        await eventually_async(lambda: len(loaded.source.reads) == 2)
        loaded.source.reads[1].set_result(loaded.history.values(["answer"]))
        await eventually_async(lambda: subscription.statistics().queued_frames == 6)
        assert taken(subscription) == ["snapshot", "task", "task", "task", "task", "result"]


async def test_an_exception_in_one_run_does_not_affect_another(
    loaded: LoadedHub, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(loaded) as subscription:
        joining = asyncio.create_task(loaded.hub.subscribe(OTHER, UNTIL_RUN))
        other = History(key=OTHER)
        (await loaded.nth_load(2)).set_result((other.state(), loaded.history.cursor()))
        failing = await joining
        subscription.take(), failing.take()

        loaded.history.set_task("ask", "scheduled")
        good = loaded.history.journal[-1]
        bad = good._replace(run_id=OTHER.run_id, map_index=None)
        loaded.hub.dispatch([bad, good], loaded.history.cursor())

        assert taken(subscription) == ["task"]
        assert taken(failing) == ["close"]
        assert failing.closed is not None
        assert failing.closed.code == CloseCode.INTERNAL
    assert "Lost the state of run" in caplog.text


async def test_a_resume_is_refused_if_its_run_is_discarded_meanwhile(loaded: LoadedHub) -> None:
    resume_from = ResumePoint(ResumeToken(loaded.history.cursor()))
    resuming = asyncio.create_task(loaded.hub.subscribe(KEY, UNTIL_RUN, resume_from=resume_from))
    await loaded.load()
    await eventually_async(lambda: len(loaded.source.histories) == 1)

    loaded.history.set_task("ask", "scheduled")
    undecodable = loaded.history.journal[-1]._replace(map_index=None)
    loaded.hub.dispatch([undecodable], loaded.history.cursor())
    loaded.source.histories[0].set_result(None)

    with pytest.raises(Unavailable, match="lost the state"):
        await resuming
    assert not loaded.hub.is_watched(KEY)


async def test_a_draining_hub_disconnects_all_and_refuses_new_subscriptions(loaded: LoadedHub) -> None:
    async with watching(loaded) as subscription:
        draining = asyncio.create_task(loaded.hub.drain(grace=5))
        await eventually_async(lambda: subscription.is_complete)
        assert taken(subscription) == ["snapshot", "close"]
        with pytest.raises(Draining):
            await loaded.hub.subscribe(KEY, UNTIL_RUN)
        assert not draining.done()
    await asyncio.wait_for(draining, 5)


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
