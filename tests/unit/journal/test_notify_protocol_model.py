"""Walks through every order in which transactions and tails can act, and finds none that leaves a row unread.

A model of `stream_server.ring()`, of `Tail._rest` and of PostgreSQL's commit, one atomic step at a time: a commit
becomes visible first, gives its locks back then, and is heard last (`CommitTransaction` in PostgreSQL's `xact.c`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

import pytest

_T = TypeVar("_T")


class Rules(NamedTuple):
    """What the protocol asks for. Each can be left out, to see that it is needed."""

    look_twice: bool = True
    """A transaction that means to be silent looks for sleepers once more when it has said so."""

    say_so: bool = True
    """A silent transaction holds a lock until its end."""

    hold_past_visible: bool = True
    """It gives the lock back when its rows can be seen, and not before."""

    wait_for_silent: bool = True
    """A tail that has lain down waits for the end of silent transactions."""

    read_once_more: bool = True
    """It reads when they have ended, and only then waits for the bell."""

    lie_down_first: bool = True
    """It says that it sleeps before it looks for silent transactions."""

    clear_before_reading: bool = True
    """It forgets the bell's last ring before it reads, and not after."""


class Writer(NamedTuple):
    at: str = "written"
    rings: bool = False
    silent: bool = False
    visible: bool = False


class Tail(NamedTuple):
    at: str = "awake"
    seen: frozenset[int] = frozenset()
    lying: bool = False
    bell: bool = False
    may_get_up: int = 1
    may_crash: int = 1


class World(NamedTuple):
    writers: tuple[Writer, ...]
    tails: tuple[Tail, ...]


def walk(rules: Rules, writers: int, tails: int) -> tuple[int, World | None]:
    """Visit every state that can be reached; how many there are, and one in which all wait and a row is unread."""
    first = World((Writer(),) * writers, (Tail(), *(Tail(may_crash=0),) * (tails - 1)))
    seen, queue = {first}, [first]
    while queue:
        world = queue.pop()
        following = list(steps(rules, world))
        if not following and any(len(tail.seen) < writers for tail in world.tails):
            return len(seen), world
        for one in following:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    return len(seen), None


def steps(rules: Rules, world: World) -> Iterator[World]:
    return chain(
        (
            with_writer(world, number, after)
            for number, writer in enumerate(world.writers)
            for after in writer_steps(rules, writer, world)
        ),
        (heard(world, number) for number, writer in enumerate(world.writers) if writer.at == "released"),
        (
            world._replace(tails=replaced(world.tails, number, after))
            for number, tail in enumerate(world.tails)
            for after in tail_steps(rules, tail, world)
        ),
    )


def writer_steps(rules: Rules, writer: Writer, world: World) -> Iterator[Writer]:
    somebody_sleeps = any(tail.lying for tail in world.tails)
    if writer.at == "written":
        yield writer._replace(at="decided", rings=True) if somebody_sleeps else writer._replace(at="looked")
    elif writer.at == "looked":
        yield writer._replace(at="silent", silent=rules.say_so)
    elif writer.at == "silent":
        yield writer._replace(at="decided", rings=somebody_sleeps and rules.look_twice)
    elif writer.at == "decided":
        early = not rules.hold_past_visible
        yield writer._replace(at="gave back", silent=False) if early else writer._replace(at="visible", visible=True)
    elif writer.at in {"visible", "gave back"}:
        yield writer._replace(at="released", silent=False, visible=True)


def heard(world: World, number: int) -> World:
    writer = world.writers[number]
    done = with_writer(world, number, writer._replace(at="done"))
    return done._replace(tails=tuple(tail._replace(bell=True) for tail in done.tails)) if writer.rings else done


def tail_steps(rules: Rules, tail: Tail, world: World) -> Iterator[Tail]:
    read = tail._replace(seen=frozenset(number for number, writer in enumerate(world.writers) if writer.visible))
    if tail.may_crash:
        # It connects again: its lock is gone, and so is what it had not heard yet.
        yield Tail(seen=tail.seen, may_get_up=tail.may_get_up, may_crash=tail.may_crash - 1)
    if tail.at in {"asleep", "woken", "has read"}:
        yield from sleeper_steps(rules, tail, read)
    elif tail.at == "awake":
        yield read._replace(at="lies down" if rules.lie_down_first else "drowsy")
        if read != tail:
            yield read
    elif tail.at == "lies down":
        yield tail._replace(at="drowsy", lying=True)
    elif tail.at == "drowsy":
        if not (rules.wait_for_silent and any(writer.silent for writer in world.writers)):
            yield tail._replace(at="last read" if rules.read_once_more else "asleep", lying=rules.lie_down_first)
        if read != tail:
            yield read
    elif tail.at == "last read":
        yield read._replace(at="asleep", lying=True)


def sleeper_steps(rules: Rules, tail: Tail, read: Tail) -> Iterator[Tail]:
    if tail.at == "asleep":
        if tail.bell:
            yield tail._replace(at="woken", bell=not rules.clear_before_reading)
        if tail.may_get_up:
            yield tail._replace(at="awake", lying=False, may_get_up=tail.may_get_up - 1)
    elif tail.at == "woken":
        yield read._replace(at="asleep" if rules.clear_before_reading else "has read")
    elif tail.at == "has read":
        yield tail._replace(at="asleep", bell=False)


def with_writer(world: World, number: int, writer: Writer) -> World:
    return world._replace(writers=replaced(world.writers, number, writer))


def replaced(items: tuple[_T, ...], number: int, item: _T) -> tuple[_T, ...]:
    return (*items[:number], item, *items[number + 1 :])


@pytest.mark.parametrize(("writers", "tails"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_nobody_sleeps_while_a_row_is_unread(writers: int, tails: int) -> None:
    states, stuck = walk(Rules(), writers, tails)
    assert stuck is None
    assert states > 50, "the model moves"


@pytest.mark.parametrize("rule", list(Rules._fields))
def test_every_rule_is_needed(rule: str) -> None:
    _, stuck = walk(Rules(**{rule: False}), writers=2, tails=1)
    assert stuck is not None
