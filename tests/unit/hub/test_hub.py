"""The hub, with reads from the database that end when and how a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing

import pytest

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.errors import Draining, JournalUnreachable, RunNotFound, Unavailable, UnknownTask
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumePoint, ResumeToken
from stream_server.server.metrics import Metrics
from support.builders import KEY, History, types
from support.waiting import eventually_async

UNTIL_RUN = WatchOptions(until="run")
OTHER = RunKey(KEY.dag_id, "another")


class Source:
    """A database whose answers are given by the test, in the order of the reads."""

    def __init__(self) -> None:
        self.loads: list[asyncio.Future[tuple[RunState, JournalPosition]]] = []
        self.reads: list[asyncio.Future[ReturnValues]] = []
        self.histories: list[asyncio.Future[list[Transition] | None]] = []
        self.refreshed = 0

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        self.histories.append(asyncio.get_running_loop().create_future())
        return await self.histories[-1]

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        return False

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        self.loads.append(asyncio.get_running_loop().create_future())
        return await self.loads[-1]

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]

    async def reconnect(self) -> None:
        self.refreshed += 1


class Desk:
    """A hub, its source, and the history of the run that it serves."""

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
        """Hand on what the history has written since the last time."""
        batch = self.history.journal[self._dispatched :]
        self._dispatched = len(self.history.journal)
        self.hub.dispatch(batch, self.history.cursor())
        return batch


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.hub.close()


def taken(subscription: Subscription) -> list[str]:
    return types([wire.frame for wire in subscription.take()])


@asynccontextmanager
async def watching(desk: Desk, question: WatchOptions = UNTIL_RUN) -> AsyncIterator[Subscription]:
    """Watch the run. The first subscription gets it loaded at once."""
    subscribing = asyncio.create_task(desk.hub.subscribe(KEY, question))
    if not desk.source.loads:
        await desk.load()
    with closing(await subscribing) as subscription:
        yield subscription


async def test_before_the_tail_has_started_nothing_can_be_watched() -> None:
    hub = Hub(Source(), max_queued_bytes=1, observer=Metrics())
    with pytest.raises(JournalUnreachable):
        await hub.subscribe(KEY, UNTIL_RUN)


async def test_concurrent_subscriptions_share_a_load(desk: Desk) -> None:
    joining = [asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN)) for _ in range(20)]
    await desk.load()
    subscriptions = await asyncio.gather(*joining)
    assert [taken(one) for one in subscriptions] == [["snapshot"]] * 20
    assert len(desk.source.loads) == 1
    assert desk.hub.statistics()[:2] == (1, 20)
    for one in subscriptions:
        one.close()
    assert desk.hub.statistics()[:2] == (0, 0)


async def test_close_releases_the_run_and_what_was_registered(desk: Desk) -> None:
    subscribing = asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN))
    await desk.load()
    subscription = await subscribing
    released: list[int] = []
    subscription.on_close(lambda: released.append(desk.hub.statistics().runs))
    subscription.close()
    assert released == [1], "released before the run"
    assert desk.hub.statistics()[:2] == (0, 0)
    subscription.close()
    assert desk.hub.statistics()[:2] == (0, 0)


async def test_a_missing_run_is_reported_to_all_and_loaded_again(desk: Desk) -> None:
    async def join() -> None:
        (await desk.hub.subscribe(KEY, UNTIL_RUN)).close()

    joining = [asyncio.create_task(join()) for _ in range(3)]
    (await desk.nth_load(1)).set_exception(RunNotFound(*KEY))
    assert [type(told) for told in await asyncio.gather(*joining, return_exceptions=True)] == [RunNotFound] * 3
    again = asyncio.create_task(join())
    await desk.load(2)
    await again
    assert desk.hub.statistics().runs == 0


async def test_a_cancelled_subscription_leaves_no_run_behind(desk: Desk) -> None:
    joining = asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN))
    load = await desk.nth_load(1)
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert desk.hub.statistics().runs == 0
    await eventually_async(load.cancelled)


async def test_unknown_tasks_leave_no_run_behind(desk: Desk) -> None:
    with pytest.raises(UnknownTask):
        async with watching(desk, WatchOptions(result_tasks=("nobody",))):
            pass
    assert desk.hub.statistics().runs == 0


async def test_transitions_during_a_load_follow_the_snapshot(desk: Desk) -> None:
    joining = asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN))
    load = await desk.nth_load(1)
    read = (desk.history.state(), desk.history.cursor())
    desk.history.set_task("ask", "scheduled")
    desk.dispatch()
    load.set_result(read)
    subscription = await joining
    (wire,) = subscription.take()
    assert {task.state for task in wire.frame.tasks if task.task_id == "ask"} == {"scheduled"}  # type: ignore[union-attr]


async def test_two_resyncs_lose_no_transition_between_them(desk: Desk) -> None:
    async with watching(desk) as subscription:
        subscription.take()
        desk.hub.resync(desk.history.cursor(), "transitions_lost")
        desk.hub.resync(desk.history.cursor(), "transitions_lost")
        await desk.nth_load(3)
        before = (desk.history.state(), desk.history.cursor())
        await desk.load(2)
        await eventually_async(desk.source.loads[1].done)
        desk.history.set_task("ask", "scheduled")
        desk.dispatch()
        desk.source.loads[2].set_result(before)
        await eventually_async(lambda: subscription.statistics().queued_frames >= 2)
        desk.history.set_task("ask", "queued")
        desk.dispatch()
        frames = [wire.frame for wire in subscription.take()]
    assert types(frames) == ["reset", "snapshot", "task"]
    assert {task.state for task in frames[1].tasks if task.task_id == "ask"} == {"scheduled"}  # type: ignore[union-attr]


async def test_return_values_are_read_until_postgresql_answers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_server.hub.watched_runs.RETRY_SECONDS", 0)
    async with watching(desk) as subscription:
        desk.history.run_task("answer", 42)
        desk.dispatch()
        await eventually_async(lambda: len(desk.source.reads) == 1)
        desk.source.reads[0].set_exception(JournalUnreachable("gone"))
        await eventually_async(lambda: len(desk.source.reads) == 2)
        desk.source.reads[1].set_result(desk.history.values(["answer"]))
        await eventually_async(lambda: subscription.statistics().queued_frames == 6)
        assert taken(subscription) == ["snapshot", "task", "task", "task", "task", "result"]


async def test_an_exception_in_one_run_does_not_affect_another(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(desk) as subscription:
        joining = asyncio.create_task(desk.hub.subscribe(OTHER, UNTIL_RUN))
        other = History(key=OTHER)
        (await desk.nth_load(2)).set_result((other.state(), desk.history.cursor()))
        unlucky = await joining
        subscription.take(), unlucky.take()

        desk.history.set_task("ask", "scheduled")
        good = desk.history.journal[-1]
        bad = good._replace(run_id=OTHER.run_id, task_id=None)
        desk.hub.dispatch([bad, good], desk.history.cursor())

        assert taken(subscription) == ["task"]
        assert taken(unlucky) == ["close"]
        assert unlucky.closed is not None
        assert unlucky.closed.code == CloseCode.INTERNAL
    assert "Lost the state of run" in caplog.text


async def test_a_resume_is_refused_if_its_run_is_discarded_meanwhile(desk: Desk) -> None:
    resume_from = ResumePoint(ResumeToken(desk.history.cursor()))
    resuming = asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN, resume_from=resume_from))
    await desk.load()
    await eventually_async(lambda: len(desk.source.histories) == 1)

    desk.history.set_task("ask", "scheduled")
    undecodable = desk.history.journal[-1]._replace(task_id=None)
    desk.hub.dispatch([undecodable], desk.history.cursor())
    desk.source.histories[0].set_result(None)

    with pytest.raises(Unavailable, match="lost the state"):
        await resuming
    assert not desk.hub.is_watched(KEY)


async def test_a_draining_hub_disconnects_all_and_refuses_new_subscriptions(desk: Desk) -> None:
    async with watching(desk) as subscription:
        draining = asyncio.create_task(desk.hub.drain(grace=5))
        await eventually_async(lambda: subscription.is_complete)
        assert taken(subscription) == ["snapshot", "close"]
        with pytest.raises(Draining):
            await desk.hub.subscribe(KEY, UNTIL_RUN)
        assert not draining.done()
    await asyncio.wait_for(draining, 5)


async def test_after_a_reconnect_runs_ahead_of_the_cursor_are_loaded_again(desk: Desk) -> None:
    """The tail stands where it stood when the connection was lost; what was read later may not be there any more."""
    stood = desk.history.cursor()
    desk.history.set_run("running")
    async with watching(desk) as ahead:
        await desk.hub.reconnect(stood)
        assert desk.source.refreshed == 1
        assert taken(ahead) == ["snapshot"]
        await desk.load(2)
        await eventually_async(lambda: ahead.statistics().queued_frames > 0, what="told to begin anew")
        assert taken(ahead) == ["reset", "snapshot"]


async def test_after_a_reconnect_runs_that_the_cursor_covers_are_kept(desk: Desk) -> None:
    async with watching(desk) as behind:
        taken(behind)
        desk.history.set_run("running")
        desk.dispatch()
        await desk.hub.reconnect(desk.history.cursor())
        desk.history.set_task("ask", "scheduled")
        desk.dispatch()
        assert taken(behind) == ["run", "task"]
        assert len(desk.source.loads) == 1


async def test_a_load_that_spans_a_reconnect_is_ignored(desk: Desk) -> None:
    joining = asyncio.create_task(desk.hub.subscribe(KEY, UNTIL_RUN))
    of_old = await desk.nth_load(1)
    await desk.hub.reconnect(desk.history.cursor())
    await desk.nth_load(2)
    of_old.set_exception(RunNotFound(*KEY))
    await desk.load(2)
    assert taken(await joining)[-1] == "snapshot"
