"""Model check of the notify protocol: no order of steps of transactions and tails leaves a row unread.

The model has `stream_server.ring()`, `Tail._wait_for_work` and PostgreSQL's commit, one atomic step at a time. A commit
first becomes visible, then releases its locks, and then sends its notification (`CommitTransaction` in PostgreSQL's
`xact.c`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

import pytest

_T = TypeVar("_T")


class Rules(NamedTuple):
    """The rules of the protocol. The tests leave out each of them, to show that it is needed."""

    try_twice: bool = True
    """A transaction that will not notify tries the idle-consumer lock again when it has the unnotified-writer lock."""

    take_writer_lock: bool = True
    """A transaction that does not notify holds the unnotified-writer lock until its end."""

    hold_past_visible: bool = True
    """It releases the lock when its rows are visible, and not before."""

    wait_for_writers: bool = True
    """A settling tail waits for the end of transactions that did not notify."""

    read_once_more: bool = True
    """It reads when they have ended, and only then waits for a notification."""

    take_consumer_lock_first: bool = True
    """It takes the idle-consumer lock before it tries the unnotified-writer lock."""

    clear_before_reading: bool = True
    """It clears the wake-up event before it reads, and not after."""


class Writer(NamedTuple):
    at: str = "written"
    notifies: bool = False
    holds_lock: bool = False
    visible: bool = False


class Tail(NamedTuple):
    at: str = "active"
    seen: frozenset[int] = frozenset()
    holds_lock: bool = False
    is_woken: bool = False
    may_wake_up: int = 1
    may_crash: int = 1


class World(NamedTuple):
    writers: tuple[Writer, ...]
    tails: tuple[Tail, ...]


def walk(rules: Rules, writers: int, tails: int) -> tuple[int, World | None]:
    """Visit every reachable state. Return their number, and one in which all wait and a row is unread, or `None`.

    Writers are interchangeable: of the states that differ only in their order, one is visited.
    """
    first = World((Writer(),) * writers, (Tail(), *(Tail(may_crash=0),) * (tails - 1)))
    seen, queue = {first}, [first]
    while queue:
        world = queue.pop()
        following = list(steps(rules, world))
        if not following and any(len(tail.seen) < writers for tail in world.tails):
            return len(seen), world
        for state in map(sort_writers, following):
            if state not in seen:
                seen.add(state)
                queue.append(state)
    return len(seen), None


def sort_writers(world: World) -> World:
    numbers = range(len(world.writers))
    order = sorted(numbers, key=lambda number: (world.writers[number], [number in tail.seen for tail in world.tails]))
    if order == [*numbers]:
        return world
    tails = (
        tail._replace(seen=frozenset(new for new, number in enumerate(order) if number in tail.seen))
        for tail in world.tails
    )
    return World(tuple(world.writers[number] for number in order), tuple(tails))


def steps(rules: Rules, world: World) -> Iterator[World]:
    is_any_tail_idle = any(tail.holds_lock for tail in world.tails)
    is_any_writer_locked = any(writer.holds_lock for writer in world.writers)
    visible = frozenset(number for number, writer in enumerate(world.writers) if writer.visible)
    return chain(
        (
            with_writer(world, number, after)
            for number, writer in enumerate(world.writers)
            for after in all_writer_steps(rules, writer, is_any_tail_idle)
        ),
        (notify_tails(world, number) for number, writer in enumerate(world.writers) if writer.at == "released"),
        (
            world._replace(tails=replaced(world.tails, number, after))
            for number, tail in enumerate(world.tails)
            for after in all_tail_steps(rules, tail, visible, is_any_writer_locked)
        ),
    )


# Few pairs of a writer or a tail and what matters of the rest occur, in a hundred thousand worlds.
@functools.cache
def all_writer_steps(rules: Rules, writer: Writer, is_any_tail_idle: bool) -> tuple[Writer, ...]:
    return tuple(writer_steps(rules, writer, is_any_tail_idle))


@functools.cache
def all_tail_steps(rules: Rules, tail: Tail, visible: frozenset[int], is_any_writer_locked: bool) -> tuple[Tail, ...]:
    return tuple(tail_steps(rules, tail, visible, is_any_writer_locked))


def writer_steps(rules: Rules, writer: Writer, is_any_tail_idle: bool) -> Iterator[Writer]:
    if writer.at == "written":
        yield writer._replace(at="decided", notifies=True) if is_any_tail_idle else writer._replace(at="tried")
    elif writer.at == "tried":
        yield writer._replace(at="locked", holds_lock=rules.take_writer_lock)
    elif writer.at == "locked":
        yield writer._replace(at="decided", notifies=is_any_tail_idle and rules.try_twice)
    elif writer.at == "decided":
        early = not rules.hold_past_visible
        yield (
            writer._replace(at="released early", holds_lock=False)
            if early
            else writer._replace(at="visible", visible=True)
        )
    elif writer.at in {"visible", "released early"}:
        yield writer._replace(at="released", holds_lock=False, visible=True)


def notify_tails(world: World, number: int) -> World:
    writer = world.writers[number]
    done = with_writer(world, number, writer._replace(at="done"))
    return done._replace(tails=tuple(tail._replace(is_woken=True) for tail in done.tails)) if writer.notifies else done


def tail_steps(rules: Rules, tail: Tail, visible: frozenset[int], is_any_writer_locked: bool) -> Iterator[Tail]:
    read = tail._replace(seen=visible)
    if tail.may_crash:
        # It reconnects. Its lock is gone, and so are notifications that it has not handled.
        yield Tail(seen=tail.seen, may_wake_up=tail.may_wake_up, may_crash=tail.may_crash - 1)
    if tail.at in {"idle", "woken", "has read"}:
        yield from idle_steps(rules, tail, read)
    elif tail.at == "active":
        yield read._replace(at="takes lock" if rules.take_consumer_lock_first else "settling")
        if read != tail:
            yield read
    elif tail.at == "takes lock":
        yield tail._replace(at="settling", holds_lock=True)
    elif tail.at == "settling":
        if not (rules.wait_for_writers and is_any_writer_locked):
            yield tail._replace(
                at="last read" if rules.read_once_more else "idle", holds_lock=rules.take_consumer_lock_first
            )
        if read != tail:
            yield read
    elif tail.at == "last read":
        yield read._replace(at="idle", holds_lock=True)


def idle_steps(rules: Rules, tail: Tail, read: Tail) -> Iterator[Tail]:
    if tail.at == "idle":
        if tail.is_woken:
            yield tail._replace(at="woken", is_woken=not rules.clear_before_reading)
        if tail.may_wake_up:
            yield tail._replace(at="active", holds_lock=False, may_wake_up=tail.may_wake_up - 1)
    elif tail.at == "woken":
        yield read._replace(at="idle" if rules.clear_before_reading else "has read")
    elif tail.at == "has read":
        yield tail._replace(at="idle", is_woken=False)


def with_writer(world: World, number: int, writer: Writer) -> World:
    return world._replace(writers=replaced(world.writers, number, writer))


def replaced(items: tuple[_T, ...], number: int, item: _T) -> tuple[_T, ...]:
    return (*items[:number], item, *items[number + 1 :])


@pytest.mark.parametrize(("writers", "tails"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_no_row_stays_unread_while_all_wait(writers: int, tails: int) -> None:
    states, stuck = walk(Rules(), writers, tails)
    assert stuck is None
    assert states > 50, "the model has steps"


@pytest.mark.parametrize("rule", list(Rules._fields))
def test_every_rule_is_needed(rule: str) -> None:
    _, stuck = walk(Rules(**{rule: False}), writers=2, tails=1)
    assert stuck is not None
