from __future__ import annotations

import asyncio

import pytest

from stream_server import readable
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.readable import ReadableDags


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.allowed = {"mine"}
        self.asked: list[str] = []
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

    async def ask(self, dag_id: str) -> bool:
        self.asked.append(dag_id)
        await asyncio.sleep(0)
        if self.down:
            raise PermissionUnknown("down")
        return dag_id in self.allowed


@pytest.fixture
def world() -> World:
    return World()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_what_is_not_known_is_asked_for_once(world: World) -> None:
    assert world.dags.may_read("mine") is None
    called: list[str] = []
    world.dags.decide({"mine", "yours"}, lambda: called.append("first"))
    world.dags.decide({"mine"}, lambda: called.append("second"))
    await settled()
    assert sorted(world.asked) == ["mine", "yours"]
    assert sorted(called) == ["first", "second"]
    assert (world.dags.may_read("mine"), world.dags.may_read("yours")) == (True, False)


async def test_an_answer_is_renewed_when_its_dag_is_met_again(world: World) -> None:
    assert await world.dags.among({"mine"}) == {"mine"}
    world.allowed.clear()
    world.now += 31
    # It still counts, while it is asked for.
    assert world.dags.may_read("mine") is True
    await settled()
    assert world.dags.may_read("mine") is False


async def test_one_list_renews_all_that_is_known(world: World) -> None:
    world.allowed = {f"dag{number}" for number in range(50)}
    dags = {*world.allowed, "yours"}
    assert await world.dags.among(dags) == world.allowed
    world.asked.clear()
    for listed in (1, 2, 3):
        world.now += 65
        assert await world.dags.among(dags) == world.allowed
        assert (world.listed, world.asked) == (listed, [])
    world.now += 130
    await world.dags.among({"dag0"})
    # A list of DAGs says less than a question about the runs of one.
    assert world.asked == ["dag0"]


async def test_what_the_list_contradicts_is_asked_for_itself(world: World) -> None:
    world.allowed = {"goes", "stays"}
    await world.dags.among({"goes", "stays", "comes"})
    world.asked.clear()
    world.allowed = {"stays", "comes"}
    world.now += 65
    assert await world.dags.among({"goes", "stays", "comes"}) == {"stays", "comes"}
    assert sorted(world.asked) == ["comes", "goes"]


async def test_who_may_not_list_dags_is_asked_for_each(world: World) -> None:
    world.refused = True
    await world.dags.among({"mine"})
    world.now += 65
    assert await world.dags.among({"mine"}) == {"mine"}
    assert world.asked == ["mine", "mine"]


async def test_an_answer_that_is_too_old_does_not_count(world: World) -> None:
    await world.dags.among({"mine"})
    world.now += 61
    assert world.dags.may_read("mine") is None


async def test_airflow_is_asked_until_it_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "RETRY_SECONDS", (0, 0))
    world.down = True
    called = asyncio.Event()
    world.dags.decide({"mine"}, called.set)
    await settled()
    assert not called.is_set()
    world.down = False
    await asyncio.wait_for(called.wait(), 5)
    assert world.dags.may_read("mine")


async def test_who_comes_back_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "PATIENCE_SECONDS", 0)
    with pytest.raises(PermissionUnknown):
        await world.dags.among({"mine"})
    await world.dags.close()


async def test_nothing_is_asked_any_more_at_the_end(world: World) -> None:
    called: list[str] = []
    world.dags.decide({"mine"}, lambda: called.append("x"))
    await world.dags.close()
    await settled()
    assert called == []
