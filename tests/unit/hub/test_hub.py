"""The hub, with database reads that a test completes."""

from __future__ import annotations

import asyncio

import pytest

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import Draining, JournalUnreachable, RunNotFound, Unavailable, UnknownTask
from stream_server.hub.hub import Hub
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumePoint, ResumeToken
from stream_server.server.metrics import Metrics
from support.builders import KEY, History
from support.loaded_hub import UNTIL_RUN, LoadedHub, Source, taken, watching
from support.waiting import eventually_async

OTHER = RunKey(KEY.dag_id, "another")


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
