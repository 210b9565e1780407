"""Which setups a task needs beyond its direct upstream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Protocol


class _Task(Protocol):
    @property
    def is_setup(self) -> bool: ...
    @property
    def is_teardown(self) -> bool: ...


def find_indirect_setups(
    tasks: Mapping[str, _Task], topological_order: Sequence[str], upstream: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return, by task, the setups that it needs and that are not its direct upstream, sorted.

    Tasks that need none are left out. Tasks with the same setups share one tuple.
    """
    setups = sorted(task_id for task_id, task in tasks.items() if task.is_setup)
    if not setups:
        return {}
    # A set of setups is an integer with one bit for each, so that two sets are combined in one step.
    bits = {setup: 1 << number for number, setup in enumerate(setups)}
    above = dict.fromkeys(tasks, 0)
    direct = {task_id: _combine(bits.get(one, 0) for one in upstream[task_id]) for task_id in tasks}
    for task_id in topological_order:
        above[task_id] = direct[task_id] | _combine(above[one] for one in upstream[task_id])
    # The setups that a teardown below ends, and those that no teardown ends.
    ended_below, never_ended = dict.fromkeys(tasks, 0), _combine(bits.values())
    for task_id in reversed(topological_order):
        ended = direct[task_id] if tasks[task_id].is_teardown else 0
        never_ended &= ~ended
        for one in upstream[task_id]:
            ended_below[one] |= ended_below[task_id] | ended
    scopes: dict[int, tuple[str, ...]] = {0: ()}
    found: dict[str, tuple[str, ...]] = {}
    for task_id in topological_order:
        scope = above[task_id] & ~direct[task_id] & (ended_below[task_id] | never_ended)
        if scope and not tasks[task_id].is_teardown:
            if scope not in scopes:
                scopes[scope] = tuple(setup for setup in setups if scope & bits[setup])
            found[task_id] = scopes[scope]
    return found


def _combine(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)
