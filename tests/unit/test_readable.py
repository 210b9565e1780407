from __future__ import annotations

import asyncio

import pytest

from stream_server import readable
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.firehose import Reading
from stream_server.readable import ASKED, OF_ALL_DAGS, ReadableDags

MINE, YOURS, SAID = Reading("mine"), Reading("yours"), Reading("mine", values=True)


def runs_of(*dag_ids: str) -> set[Reading]:
    return {Reading(dag_id) for dag_id in dag_ids}


def said_by(*dag_ids: str) -> set[Reading]:
    return {Reading(dag_id, values=True) for dag_id in dag_ids}


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.allowed = {"mine"}
        self.asked: list[Reading] = []
        self.silent = False
        """Who may read runs, and not what tasks say."""

        self.heard_by_name = False
        """Who may read what tasks say of single DAGs, and not of all."""

        self.down = False
        self.listed = 0
        self.refused = False
        self.dags = ReadableDags(self.ask, self.list_dags, good_for=30, clock=lambda: self.now)

    async def list_dags(self) -> set[str]:
        self.listed += 1
        await asyncio.sleep(0)
        if self.refused:
            raise AirflowRefused("Forbidden", 403)
        return self.allowed

    async def ask(self, reading: Reading) -> bool:
        self.asked.append(reading)
        await asyncio.sleep(0)
        if self.down:
            raise PermissionUnknown("down")
        if reading == OF_ALL_DAGS:
            return not self.silent and not self.heard_by_name
        return reading.dag_id in self.allowed and not (reading.values and self.silent)


@pytest.fixture
def world() -> World:
    return World()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_what_is_not_known_is_asked_for_once(world: World) -> None:
    assert world.dags.may_read(MINE) is None
    called: list[str] = []
    world.dags.decide({MINE, YOURS}, lambda: called.append("first"))
    world.dags.decide({MINE}, lambda: called.append("second"))
    await settled()
    assert sorted(world.asked) == [MINE, YOURS]
    assert sorted(called) == ["first", "second"]
    assert (world.dags.may_read(MINE), world.dags.may_read(YOURS)) == (True, False)


async def test_an_answer_is_renewed_when_its_dag_is_met_again(world: World) -> None:
    assert await world.dags.among({MINE}) == {MINE}
    world.allowed.clear()
    world.now += 31
    # It still counts, while it is asked for.
    assert world.dags.may_read(MINE) is True
    await settled()
    assert world.dags.may_read(MINE) is False


async def test_each_is_asked_for_itself_within_a_minute(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(ASKED)}
    dags = runs_of(*world.allowed)
    assert await world.dags.among(dags) == dags
    for renewal in (2, 3, 4):
        world.now += 31
        for reading in dags:
            assert world.dags.may_read(reading)
        await settled()
        assert (len(world.asked), world.listed) == (renewal * ASKED, 0)


async def test_beyond_that_each_has_its_turn_and_a_list_renews_the_others(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * ASKED)}
    dags = runs_of(*world.allowed)
    assert await world.dags.among(dags) == dags
    for renewal in range(1, 10):
        world.now += 31
        world.asked.clear()
        for reading in dags:
            assert world.dags.may_read(reading)
        await settled()
        assert world.listed == renewal
        assert len(world.asked) <= ASKED
    assert await world.dags.among(dags) == dags
    world.allowed.clear()
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in dags)
    await settled()
    # What the list does not have any more is asked for itself at once.
    assert not any(world.dags.may_read(reading) for reading in dags)


async def test_the_turn_of_each_comes(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * ASKED)}
    dags = runs_of(*world.allowed)
    await world.dags.among(dags)
    world.asked.clear()
    for _ in range(3):
        world.now += 31
        for reading in dags:
            world.dags.may_read(reading)
        await settled()
    assert set(world.asked) == dags


async def test_what_has_its_turn_no_more_is_asked_for_after_five_minutes(world: World) -> None:
    await world.dags.among({MINE})
    world.asked.clear()
    world.now += 301
    others = {f"dag{number}" for number in range(ASKED)}
    world.allowed |= others
    await world.dags.among(runs_of(*others))
    world.now += 61
    assert await world.dags.among({*runs_of(*others), MINE}) == {*runs_of(*others), MINE}
    assert MINE in world.asked


async def test_values_are_asked_for_by_themselves(world: World) -> None:
    world.silent = True
    assert await world.dags.among({MINE, SAID}) == {MINE}
    world.silent = False
    world.now += 61
    assert await world.dags.among({MINE, SAID}) == {MINE, SAID}
    assert sorted(world.asked) == [MINE, MINE, SAID, SAID]


async def test_what_tasks_say_may_be_heard_no_more_of_any_of_many_dags(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * ASKED)}
    said = said_by(*world.allowed)
    assert await world.dags.among(said) == said
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in said)
    await settled()
    assert world.listed == 1
    assert len(world.asked) <= 4 * ASKED + 1
    world.silent = True
    world.now += 31
    assert all(world.dags.may_read(reading) for reading in said)
    await settled()
    assert not any(world.dags.may_read(reading) for reading in said)


async def test_what_tasks_say_is_asked_for_each_dag_where_not_all_may_be_heard(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * ASKED)}
    world.heard_by_name = True
    said = said_by(*world.allowed)
    await world.dags.among(said)
    for _ in range(3):
        world.now += 31
        world.asked.clear()
        assert all(world.dags.may_read(reading) for reading in said)
        await settled()
        assert said <= set(world.asked)
    # A list would say nothing, and is not taken again for that.
    assert world.listed == 1


async def test_who_may_hear_no_task_costs_no_more_than_others(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(3 * ASKED)}
    world.silent = True
    dags, said = runs_of(*world.allowed), said_by(*world.allowed)
    assert await world.dags.among(dags | said) == dags
    world.now += 31
    world.asked.clear()
    for reading in dags | said:
        world.dags.may_read(reading)
    await settled()
    assert len(world.asked) <= ASKED + 1


async def test_who_may_not_list_dags_is_asked_for_each(world: World) -> None:
    world.refused = True
    await world.dags.among({MINE})
    world.now += 65
    assert await world.dags.among({MINE}) == {MINE}
    assert world.asked == [MINE, MINE]


async def test_an_answer_that_is_too_old_does_not_count(world: World) -> None:
    await world.dags.among({MINE})
    world.now += 61
    assert world.dags.may_read(MINE) is None


async def test_whoever_still_wants_to_know_asks_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "RETRY_SECONDS", (0, 0))
    world.down = True
    called = asyncio.Event()
    world.dags.decide({MINE}, called.set)
    await asyncio.wait_for(called.wait(), 5)
    assert (world.dags.may_read(MINE), len(world.asked)) == (None, 1)
    await settled()
    assert len(world.asked) == 1
    world.down = False
    assert await world.dags.among({MINE}) == {MINE}


async def test_what_is_kept_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "KEPT", 2)
    for reading in (MINE, YOURS, SAID):
        await world.dags.among({reading})
    assert [world.dags.may_read(reading) for reading in (MINE, YOURS, SAID)] == [None, False, True]


async def test_who_comes_back_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "PATIENCE_SECONDS", 0)
    with pytest.raises(PermissionUnknown):
        await world.dags.among({MINE})
    await world.dags.close()


async def test_nothing_is_asked_any_more_at_the_end(world: World) -> None:
    called: list[str] = []
    world.dags.decide({MINE}, lambda: called.append("x"))
    await world.dags.close()
    await settled()
    assert called == []
