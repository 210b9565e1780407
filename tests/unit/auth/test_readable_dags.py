from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone

import pytest

from stream_server.auth import readable_dags as readable
from stream_server.auth.readable_dags import MAX_DIRECT_REQUESTS, OUTPUT_OF_ALL_DAGS, ReadableDags
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.hub.firehose import Filter, Firehose, Resource
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition

MINE, YOURS, SAID = Resource("mine"), Resource("yours"), Resource("mine", output=True)


def runs_of(*dag_ids: str) -> set[Resource]:
    return {Resource(dag_id) for dag_id in dag_ids}


def said_by(*dag_ids: str) -> set[Resource]:
    return {Resource(dag_id, output=True) for dag_id in dag_ids}


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.allowed = {"mine"}
        self.asked: list[Resource] = []
        self.silent = False
        """Whether output may not be read at all."""

        self.heard_by_name = False
        """Whether output may be read of single DAGs, and not of all."""

        self.fault: Exception | None = None
        """What every question about a DAG raises."""

        self.listed = 0
        self.list_fault: Exception | None = None
        self.pauses: list[float] = []
        self.dags = self.readable_dags(self.sleep)

    def readable_dags(self, sleep: Callable[[float], Awaitable[None]]) -> ReadableDags:
        return ReadableDags(self.ask, self.list_dags, good_for=30, max_wait=330, clock=lambda: self.now, sleep=sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def list_dags(self) -> set[str]:
        self.listed += 1
        await asyncio.sleep(0)
        if self.list_fault is not None:
            raise self.list_fault
        return self.allowed

    async def ask(self, reading: Resource) -> bool:
        self.asked.append(reading)
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        if reading == OUTPUT_OF_ALL_DAGS:
            return not self.silent and not self.heard_by_name
        return reading.dag_id in self.allowed and not (reading.output and self.silent)


@pytest.fixture
def world() -> World:
    return World()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_an_unknown_resource_is_requested_once(world: World) -> None:
    assert world.dags.may_read(MINE) is None
    called: list[str] = []
    world.dags.request_decision({MINE, YOURS}, lambda: called.append("first"))
    world.dags.request_decision({MINE}, lambda: called.append("second"))
    await settled()
    assert sorted(world.asked) == [MINE, YOURS]
    assert sorted(called) == ["first", "second"]
    assert (world.dags.may_read(MINE), world.dags.may_read(YOURS)) == (True, False)


async def test_an_answer_is_renewed_when_its_dag_is_met_again(world: World) -> None:
    assert await world.dags.filter_readable({MINE}) == {MINE}
    world.allowed.clear()
    world.now += 31
    # It still counts, while it is asked for.
    assert world.dags.may_read(MINE) is True
    await settled()
    assert world.dags.may_read(MINE) is False


async def test_each_dag_is_requested_directly_within_a_minute(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(MAX_DIRECT_REQUESTS)}
    dags = runs_of(*world.allowed)
    assert await world.dags.filter_readable(dags) == dags
    for renewal in (2, 3, 4):
        world.now += 31
        for reading in dags:
            assert world.dags.may_read(reading)
        await settled()
        assert (len(world.asked), world.listed) == (renewal * MAX_DIRECT_REQUESTS, 0)


async def test_beyond_the_quota_requests_take_turns_and_a_list_renews_the_rest(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*world.allowed)
    assert await world.dags.filter_readable(dags) == dags
    for renewal in range(1, 10):
        world.now += 31
        world.asked.clear()
        for reading in dags:
            assert world.dags.may_read(reading)
        await settled()
        assert world.listed == renewal
        assert len(world.asked) <= MAX_DIRECT_REQUESTS
    assert await world.dags.filter_readable(dags) == dags
    world.allowed.clear()
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in dags)
    await settled()
    # What the list does not have any more is asked for itself at once.
    assert not any(world.dags.may_read(reading) for reading in dags)


async def test_each_answer_is_requested_directly_in_turn(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*world.allowed)
    await world.dags.filter_readable(dags)
    world.asked.clear()
    for _ in range(3):
        world.now += 31
        for reading in dags:
            world.dags.may_read(reading)
        await settled()
    assert set(world.asked) == dags


async def test_an_answer_without_a_turn_is_requested_after_its_longest_renewal(world: World) -> None:
    await world.dags.filter_readable({MINE})
    world.asked.clear()
    world.now += 301
    others = {f"dag{number}" for number in range(MAX_DIRECT_REQUESTS)}
    world.allowed |= others
    await world.dags.filter_readable(runs_of(*others))
    world.now += 61
    assert await world.dags.filter_readable({*runs_of(*others), MINE}) == {*runs_of(*others), MINE}
    assert MINE in world.asked


async def test_output_is_a_resource_of_its_own(world: World) -> None:
    world.silent = True
    assert await world.dags.filter_readable({MINE, SAID}) == {MINE}
    world.silent = False
    world.now += 61
    assert await world.dags.filter_readable({MINE, SAID}) == {MINE, SAID}
    assert sorted(world.asked) == [MINE, MINE, SAID, SAID]


async def test_a_lost_permission_for_output_is_noticed_for_many_dags(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    said = said_by(*world.allowed)
    assert await world.dags.filter_readable(said) == said
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in said)
    await settled()
    assert world.listed == 1
    assert len(world.asked) <= 4 * MAX_DIRECT_REQUESTS + 1
    world.silent = True
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in said)
    await settled()
    assert not any(world.dags.may_read(reading) for reading in said)


async def test_output_is_requested_for_each_dag_if_not_all_may_be_read(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    world.heard_by_name = True
    said = said_by(*world.allowed)
    await world.dags.filter_readable(said)
    for _ in range(3):
        world.now += 31
        world.asked.clear()
        assert all(world.dags.may_read(reading) for reading in said)
        await settled()
        assert said <= set(world.asked)
    # A list would not help, and is not requested again.
    assert world.listed == 1


async def test_refused_output_costs_no_more_requests_than_granted_output(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    world.silent = True
    dags, said = runs_of(*world.allowed), said_by(*world.allowed)
    assert await world.dags.filter_readable(dags | said) == dags
    world.now += 31
    world.asked.clear()
    for reading in dags | said:
        world.dags.may_read(reading)
    await settled()
    assert len(world.asked) <= MAX_DIRECT_REQUESTS + 1


async def test_without_a_list_each_dag_is_requested_directly(world: World) -> None:
    world.list_fault = AirflowRefused("Forbidden", 403)
    await world.dags.filter_readable({MINE})
    world.now += 65
    assert await world.dags.filter_readable({MINE}) == {MINE}
    assert world.asked == [MINE, MINE]


async def test_an_answer_that_is_too_old_is_not_used(world: World) -> None:
    await world.dags.filter_readable({MINE})
    world.now += 61
    assert world.dags.may_read(MINE) is None


FAULTS = [PermissionUnknown("down"), AirflowRefused("Bad request", 400), TypeError("null"), RecursionError()]


class Pauses:
    """Pauses that end one by one, when the test ends them."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._ends = asyncio.Semaphore(0)

    async def sleep(self, _seconds: float) -> None:
        self.begun.set()
        await self._ends.acquire()

    def end_one(self) -> None:
        self.begun.clear()
        self._ends.release()


def are_growing(pauses: list[float]) -> bool:
    """Whether pauses double from the first to the longest, but for the jitter."""
    first, longest = readable.BACKOFF_SECONDS
    means = [min(first * 2**number, longest) for number in range(len(pauses))]
    return all(0.5 * mean <= pause <= 1.5 * mean for pause, mean in zip(pauses, means, strict=True))


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_a_look_up_that_fails_is_repeated_after_a_pause_and_on_request_only(
    world: World, fault: Exception
) -> None:
    world.fault = fault
    for number in range(1, 8):
        called = asyncio.Event()
        world.dags.request_decision({MINE}, called.set)
        await asyncio.wait_for(called.wait(), 5)
        await settled()
        assert (world.dags.may_read(MINE), len(world.asked), len(world.pauses)) == (None, number, number)
    assert are_growing(world.pauses)
    world.fault = None
    assert await world.dags.filter_readable({MINE}) == {MINE}


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_a_resuming_client_waits_for_few_look_ups(world: World, fault: Exception) -> None:
    world.fault = fault
    with pytest.raises(PermissionUnknown):
        await world.dags.filter_readable({MINE})
    # With the shortest pauses, 0.5, 1, 2, 4 and 5 s, the fifth one ends after the patience.
    assert len(world.asked) <= 5
    assert len(world.pauses) == len(world.asked)
    assert are_growing(world.pauses)


async def test_a_waiting_stream_makes_no_look_up_during_the_pause(world: World) -> None:
    world.fault = TypeError("null")
    pauses = Pauses()
    dags = world.readable_dags(pauses.sleep)
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(), subscription, JournalPosition("e", 1, 1), 0.0, dags)
    row = Transition(1, 1, datetime(2026, 1, 1, tzinfo=timezone.utc), TransitionKind.RUN, "mine", "r", state="queued")
    for seconds in range(100):
        firehose.dispatch([row], JournalPosition("e", 2, 2), float(seconds))
        await settled()
    assert len(world.asked) == 1
    pauses.end_one()
    await asyncio.wait_for(pauses.begun.wait(), 5)
    assert len(world.asked) == 2
    world.fault = None
    pauses.end_one()
    assert await asyncio.wait_for(dags.filter_readable({MINE}), 5) == {MINE}
    await settled()
    assert [wire.type for wire in subscription.take()] == ["ping"] + ["run"] * 100
    assert len(world.asked) == 3


async def test_a_success_resets_the_pause(world: World) -> None:
    world.fault = TypeError("null")
    with pytest.raises(PermissionUnknown):
        await world.dags.filter_readable({MINE})
    world.fault = None
    assert await world.dags.filter_readable({MINE}) == {MINE}
    world.fault = TypeError("null")
    world.now += 61
    world.pauses.clear()
    with pytest.raises(PermissionUnknown):
        await world.dags.filter_readable({MINE})
    assert are_growing(world.pauses)


async def test_a_failed_look_up_delays_no_other(world: World) -> None:
    world.fault = TypeError("null")
    pauses = Pauses()
    dags = world.readable_dags(pauses.sleep)
    dags.request_decision({YOURS}, lambda: None)
    await asyncio.wait_for(pauses.begun.wait(), 5)
    world.fault = None
    assert await asyncio.wait_for(dags.filter_readable({MINE}), 5) == {MINE}
    await dags.close()


@pytest.mark.parametrize("fault", [PermissionUnknown("down"), TypeError("null")], ids=repr)
async def test_a_list_that_fails_is_requested_once_for_all_that_need_it(world: World, fault: Exception) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * MAX_DIRECT_REQUESTS)}
    dags = runs_of(*world.allowed)
    await world.dags.filter_readable(dags)
    world.now += 31
    world.asked.clear()
    world.list_fault = fault
    for number in range(1, 4):
        assert all(world.dags.may_read(reading) for reading in dags)
        await settled()
        assert (world.listed, len(world.pauses)) == (number, number)
    assert are_growing(world.pauses)
    assert len(world.asked) <= MAX_DIRECT_REQUESTS
    world.list_fault = None
    assert all(world.dags.may_read(reading) for reading in dags)
    await settled()
    assert world.listed == 4


async def test_only_the_first_unexpected_exception_in_a_row_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fault = TypeError("null")
    with pytest.raises(PermissionUnknown):
        await world.dags.filter_readable({MINE, YOURS})
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_the_number_of_pauses_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_ANSWERS", 2)
    world.dags = world.readable_dags(world.sleep)
    world.fault = TypeError("null")
    for reading in (MINE, YOURS, SAID, MINE):
        world.pauses.clear()
        called = asyncio.Event()
        world.dags.request_decision({reading}, called.set)
        await asyncio.wait_for(called.wait(), 5)
        # That of the first has been forgotten.
        assert are_growing(world.pauses)


async def test_the_number_of_answers_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_ANSWERS", 2)
    world.dags = world.readable_dags(world.sleep)
    for reading in (MINE, YOURS, SAID):
        await world.dags.filter_readable({reading})
    assert [world.dags.may_read(reading) for reading in (MINE, YOURS, SAID)] == [None, False, True]


async def test_a_resuming_client_does_not_wait_forever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "MAX_WAIT_SECONDS", 0)
    with pytest.raises(PermissionUnknown):
        await world.dags.filter_readable({MINE})
    await world.dags.close()


async def test_close_cancels_all_requests(world: World) -> None:
    called: list[str] = []
    world.dags.request_decision({MINE}, lambda: called.append("x"))
    await world.dags.close()
    await settled()
    assert called == []
