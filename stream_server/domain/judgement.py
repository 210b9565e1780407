"""How the instances of one task can end, and what the tasks below need of that.

Sets of `Ends` are integers (`waiting_ends`). So are sets of failed instances: a bit stands for all instances of one
task that have ended in one of the two states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeAlias, TypeVar

from stream_server.domain.prediction_plan import TaskPlan
from stream_server.domain.trigger_rules import ANY, FAILURE, Ends
from stream_server.domain.waiting_ends import (
    CAN_FAIL_OR_BE_REMOVED_BY_UPSTREAM,
    CAN_SKIP,
    FAILS_WITH_UPSTREAM_ONLY,
    HAS_FAILED,
    MAY_RUN,
    bit_of,
)

_T = TypeVar("_T")

PossibleStates: TypeAlias = Mapping[Ends, AbstractSet[int]]
"""How the instances of one task can end: their indexes, by the set of possible ends."""

NO_INSTANCES: PossibleStates = {ANY: frozenset({-1})}
"""Of a task that has no instances yet. Airflow may still create some."""

_FAILURE_BITS = FAILURE._value_
_BITS_PER_TASK = _FAILURE_BITS.bit_length()


class Judgement(NamedTuple):
    """How the instances of one task can end, and what the tasks below need of that."""

    possible: PossibleStates
    ends: int
    """The keys of `possible`."""

    unexpanded: int
    """The ends of index -1."""

    skips_downstream: bool
    """Whether this task, or one upstream of it, may still decide to skip what follows, whatever its rule."""

    has_failures: bool = False
    """Whether one of the members below is not 0."""

    failed: int = 0
    """States in which instances have failed, as bits of `Ends`."""

    failures: int = 0
    """How many instances have failed; 2 stands for all higher numbers."""

    causes: int = 0
    """Failed instances each of which is enough for the next loop to fail this waiting task."""

    awaited_to_run: int = 0
    """Failed instances that a loop must have seen to run this waiting task, which only itself can skip."""

    awaited_to_end: int = 0
    """Failed instances that a loop must have seen for this waiting task to end in any state."""


UNKNOWN = Judgement(NO_INSTANCES, bit_of(ANY), bit_of(ANY), skips_downstream=False)


class Upstream(NamedTuple):
    """What a task sees of its direct upstream tasks."""

    ends: int
    may_skip: bool
    """Whether a decider upstream, direct or not, may still decide to skip the task."""

    fails_before_skips: bool
    """Whether a task with the rule `all_success` sees a failed task before it sees a skipped one.

    An upstream task that will run may skip itself. If it waits for the same end that fails another upstream task, then
    a loop that schedules it has already failed the other one. Airflow 3 schedules only in the loop, which reads all
    instances of a run at once (`DagRun.task_instance_scheduling_decisions`)."""

    failed: int = 0
    """The failed instances that all instances of the task see."""

    failures: int = 0
    """How many they are; 2 stands for all higher numbers."""

    awaited: int = 0
    """Failed instances that a loop must have seen for all upstream tasks to end."""


class UpstreamView(NamedTuple):
    """How the upstream of one instance, or of several with the same view, can end: sets of `Ends`."""

    direct: int = 0
    setups: int = 0
    """The setups among the direct ones."""

    indirect_setups: int = 0


def look_upstream(plan: TaskPlan, judgements: Sequence[Judgement]) -> Upstream:
    """Return what a task sees of its direct upstream tasks."""
    ends, may_skip, has_failures = 0, False, False
    for number in plan.upstream:
        judgement = judgements[number]
        ends |= judgement.ends
        if judgement.skips_downstream:
            may_skip = True
        if judgement.has_failures:
            has_failures = True
    if not has_failures:
        return Upstream(ends, may_skip, not ends & CAN_SKIP)
    failed = failures = awaited = causes = 0
    for number in plan.upstream:
        judgement = judgements[number]
        if judgement.failed and (plan.mapped is None or number not in plan.mapped.same_index_only):
            failed |= judgement.failed << number * _BITS_PER_TASK
            failures += judgement.failures
        if judgement.awaited_to_end:
            awaited = _join(awaited, judgement.awaited_to_end)
        causes |= judgement.causes
    fails_before_skips = not ends & CAN_SKIP or (
        causes != 0
        and all(causes & judgements[one].awaited_to_run for one in plan.upstream if judgements[one].ends & CAN_SKIP)
    )
    return Upstream(ends, may_skip, fails_before_skips, failed, min(failures, 2), awaited)


def build_judgement(
    plan: TaskPlan, upstream: Upstream, possible: PossibleStates, *, is_skipped_only_by_itself: bool, sources: int
) -> Judgement:
    """Return the judgement of a task with instances.

    Args:
        plan: The task.
        upstream: What it sees.
        possible: How its instances can end.
        is_skipped_only_by_itself: Whether all of them wait, and nothing upstream can skip them.
        sources: Ends of the tasks that it is mapped over.
    """
    ends = unexpanded = failed = failures = 0
    for one, indexes in possible.items():
        bit = bit_of(one)
        ends |= bit
        if -1 in indexes:
            unexpanded |= bit
        if bit & HAS_FAILED:
            failed |= one._value_ & _FAILURE_BITS
            failures += len(indexes)
    causes = awaited_to_end = 0
    if plan.fails_with_upstream and ends == FAILS_WITH_UPSTREAM_ONLY:
        causes = upstream.failed
    awaited_to_run = 0
    if is_skipped_only_by_itself and plan.waits_for_all:
        awaited_to_run = _join(upstream.awaited, upstream.failed)
    if not ends & CAN_FAIL_OR_BE_REMOVED_BY_UPSTREAM:
        awaited_to_end = awaited_to_run
    elif upstream.failures == 1 and not plan.indirect_setups and not sources & HAS_FAILED:
        # With several causes none of them must have been seen, nor if something else can fail the task.
        awaited_to_end = causes
    return Judgement(
        possible,
        ends,
        unexpanded,
        upstream.may_skip or (plan.is_decider and bool(ends & MAY_RUN)),
        bool(failed or causes or awaited_to_run or awaited_to_end),
        failed,
        min(failures, 2),
        causes,
        awaited_to_run,
        awaited_to_end,
    )


def extend_view(plan: TaskPlan, view: UpstreamView, number: int, ends: int) -> UpstreamView:
    """Return a view that also has the ends of an upstream task."""
    if number not in plan.upstream:
        return view._replace(indirect_setups=view.indirect_setups | ends)
    direct = view.direct | ends
    return UpstreamView(direct, view.setups | ends if number in plan.setups else view.setups, view.indirect_setups)


def add_indexes(possible: dict[_T, AbstractSet[int]], key: _T, indexes: AbstractSet[int]) -> None:
    """Add indexes to those of a key."""
    if indexes:
        found = possible.get(key)
        possible[key] = indexes if found is None else found | indexes


def _join(first: int, second: int) -> int:
    """Return the union of two sets. Long sets are shared where one contains the other."""
    both = first | second
    return first if both == first else second if both == second else both
