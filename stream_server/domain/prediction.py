"""What is certain of a run that still goes on: how each task instance can end, whatever the others do.

Airflow spreads a failure one level per loop of its scheduler; here it is followed to the end at once. The walk goes
down the graph and gives every instance the set of ends that are possible for it (`trigger_rules`): where `success` is
not among them, the instance is doomed. The sets may be too large, never too small, so that a doom told is never wrong.
What people do (clear, mark, change the DAG) is not foreseen. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeAlias, TypeVar

from stream_server.domain.graph import Graph, Task
from stream_server.domain.trigger_rules import (
    ANY,
    FAILING_WITH_OTHERS,
    HEEDLESS,
    NOW,
    RACING,
    RUN,
    SKIPPING_WITH_OTHERS,
    WAITING_FOR_ALL,
    Above,
    Ends,
    F,
    K,
    R,
    S,
    U,
    ends_by,
    spread,
)

_T = TypeVar("_T")

BAD = frozenset({"failed", "upstream_failed", "skipped", "removed"})
"""States in which a task instance has ended without a value."""

States: TypeAlias = Mapping[str, Mapping[str | None, AbstractSet[int]]]
"""By task and state, the indexes of the instances in that state."""

Outlook: TypeAlias = Mapping[Ends, AbstractSet[int]]
"""How the instances of one task can end: indexes, by the set of ends."""

FINAL: dict[str | None, Ends] = {"success": S, "failed": F, "upstream_failed": U, "skipped": K, "removed": R}
"""States in which a task instance has ended."""

_STARTED = frozenset({"scheduled", "queued", "running", "deferred", "awaiting_input"})
"""States of an instance whose rule has been met, and is looked at no more."""

_WAITING = frozenset({None, "up_for_retry", "up_for_reschedule"})
"""States in which the scheduler looks at the rule (`SCHEDULEABLE_STATES`)."""

_UNKNOWN: Outlook = {ANY: frozenset({-1})}
"""Of a task that has no instances yet: it may still get some."""


class _Seen(NamedTuple):
    """What one instance, or several alike, sees above itself."""

    direct: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """Of the direct ones, the setups."""

    indirect_setups: frozenset[Ends] = frozenset()


class Forecast:
    """How every task instance of a run can end.

    Args:
        graph: The DAG.
        states: The instances of the run. They are not copied: a forecast is of the moment.
    """

    def __init__(self, graph: Graph, states: States) -> None:
        self.graph = graph
        self.states = states
        self._outlooks: dict[str, Outlook] = {}
        self._skipped_only_by_itself: set[str] = set()
        for task_id in graph.order:
            self._outlooks[task_id] = self._outlook(task_id)

    def outlook(self, task_id: str) -> Outlook:
        """Return how the instances of a task can end; those of an unexpanded one may be those that it will have."""
        return self._outlooks.get(task_id, _UNKNOWN)

    def doomed(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to end without a value, and to be missed.

        One that may be removed is missed by nobody, unless that is so of all.
        """
        outlook = self.outlook(task_id)
        missed = [found for ends, found in outlook.items() if not ends & (S | R)]
        if not missed and not any(ends & S for ends in outlook):
            missed = list(outlook.values())
        return frozenset().union(*missed)

    def failing(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to fail, by themselves or for others."""
        return frozenset().union(*(found for ends, found in self.outlook(task_id).items() if not ends & (S | K | R)))

    def _outlook(self, task_id: str) -> Outlook:
        states = self.states.get(task_id)
        if not states:
            return _UNKNOWN
        skipped = K if self._is_fail_fast(task_id) else self._skipped_by_others(task_id)
        outlook: dict[Ends, AbstractSet[int]] = {}
        waiting: AbstractSet[int] = frozenset()
        for state, indexes in states.items():
            if state in _WAITING:
                waiting |= indexes
            elif state in FINAL:
                # A decision to skip overwrites what no worker has done (`ti_skip_downstream`, `_stop_remaining_tasks`).
                overwritten = skipped if FINAL[state] in {U, R} else 0
                _add(outlook, FINAL[state] | (overwritten or NOW), indexes)
            else:
                _add(outlook, spread(RUN) if state in _STARTED else ANY, indexes)
        # One who looks at a rule also looks at what the tasks above have decided (`NotPreviouslySkippedDep`).
        decided = any(self.graph.tasks[above].can_skip_downstream for above in self.graph.upstream[task_id])
        skipped = K if decided else skipped
        if not outlook and not skipped:
            self._skipped_only_by_itself.add(task_id)
        for ends, indexes in self._waiting(task_id, waiting):
            _add(outlook, spread(ends) | skipped, indexes)
            if ends & K:
                self._skipped_only_by_itself.discard(task_id)
        return outlook

    def _skipped_by_others(self, task_id: str) -> Ends:
        """Return `skipped` if a task above, near or far, may yet decide that a task is skipped, whatever its rule."""
        return K if any(self._may_run(above) for above in self.graph.deciders.get(task_id, ())) else 0

    def _is_fail_fast(self, task_id: str) -> bool:
        return self.graph.fail_fast and not self.graph.tasks[task_id].is_teardown

    def _may_run(self, task_id: str) -> bool:
        return any(ends & S and not ends & NOW for ends in self.outlook(task_id))

    def _waiting(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield how instances can end that wait for their rule to be met."""
        if not indexes:
            return
        if any(self._is_tangled(task_id, above) for above in self.above(task_id)):
            yield ANY, indexes
        elif -1 in indexes and self.graph.may_expand(task_id):
            yield from self._unexpanded(task_id)
            yield from self._expanded(task_id, indexes - {-1})
        else:
            yield from self._expanded(task_id, indexes)

    def _expanded(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        for seen, alike in self._seen(task_id, indexes).items():
            yield self._ends(task_id, seen), alike

    def _unexpanded(self, task_id: str) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield how the instances can end that a task will have, or itself if it comes to none.

        Once a task of the same mapped group is expanded, it is known which the others will have. Whether one that is
        not expanded itself sees all of those instances, or none, depends on the rule and on the version.
        """
        ((ends, alone),) = self._expanded(task_id, frozenset({-1}))
        siblings = [self.outlook(above) for above in self.above(task_id) if self.is_sibling(task_id, above)]
        indexes = frozenset[int]().union(
            *(found for outlook in siblings for end, found in outlook.items() if end != R | NOW)
        ) - {-1}
        if indexes:
            ends |= self._ends(task_id, self._everything(task_id))
        if not ends & RUN:
            # Only one of several instances is removed.
            yield ends & ~R or ends, alone
        elif self.graph.is_empty(task_id):
            # Nothing times something that is not known yet is not known either (`NotFullyPopulated`).
            known = not self.graph.expanded_by(task_id) and not self.graph.mapped_groups(task_id)[1:]
            yield ends & ~(RUN | R) | K | (0 if known else U), alone
        elif indexes:
            for then, alike in self._expanded(task_id, indexes):
                yield then | ends & ~RUN, alike
        else:
            yield ANY, alone

    def _everything(self, task_id: str) -> _Seen:
        seen = _Seen()
        for above in self.above(task_id):
            seen = self._adding(task_id, seen, above, self.outlook(above))
        return seen

    def _seen(self, task_id: str, indexes: AbstractSet[int]) -> dict[_Seen, AbstractSet[int]]:
        """Sort instances by what they see above themselves: inside a mapped group, what has the same index."""
        alike: dict[_Seen, AbstractSet[int]] = {_Seen(): indexes} if indexes else {}
        for above in self.above(task_id):
            outlook = self.outlook(above)
            if not self.is_sibling(task_id, above):
                alike = {self._adding(task_id, seen, above, outlook): one for seen, one in alike.items()}
                continue
            split: dict[_Seen, AbstractSet[int]] = {}
            # Who is not expanded, or not wholly, is seen by all, but sees none that is.
            common = frozenset(ends for ends, found in outlook.items() if -1 in found)
            for seen, sharing in alike.items():
                rest = sharing
                for ends, found in outlook.items():
                    if both := (rest & found) - {-1}:
                        _add(split, self._adding(task_id, seen, above, common | {ends}), both)
                        rest = rest - both
                if rest:
                    missing = frozenset({ANY}) if rest != {-1} else frozenset()
                    _add(split, self._adding(task_id, seen, above, common or missing), rest)
            alike = split
        return alike

    def _adding(self, task_id: str, seen: _Seen, above: str, ends: Iterable[Ends]) -> _Seen:
        if above not in self.graph.upstream[task_id]:
            return seen._replace(indirect_setups=seen.indirect_setups.union(ends))
        direct = seen.direct.union(ends)
        if self.graph.tasks[above].is_setup:
            return seen._replace(direct=direct, setups=seen.setups.union(ends))
        return seen._replace(direct=direct)

    def _ends(self, task_id: str, seen: _Seen) -> Ends:
        """Return how instances can end that wait, and see this."""
        task = self.graph.tasks[task_id]
        sources = self._sources(task_id)
        if self._fails_now(task, seen, sources):
            return U
        ends = self._ends_by_rule(task, seen)
        if ends & RUN and not sources.every(NOW):
            # The rule may be met before it is known how often the task is run; then it is not expanded, and fails.
            ends |= U
        ends = _unless_harmed(ends, sources, allowed=S)
        if not self.graph.may_expand(task_id):
            ends &= ~R
        # Nothing that Airflow could write: a deadlock, which ends the run.
        return ends or RUN | ANY

    def _sources(self, task_id: str) -> Above:
        """Return what says how often a task is run, as far as `MappedTaskUpstreamDep` looks: where it is unexpanded."""
        outlooks = [self.outlook(source) for source in self.graph.expanded_by(task_id)]
        return Above(frozenset(ends for outlook in outlooks for ends, found in outlook.items() if -1 in found))

    def _fails_now(self, task: Task, seen: _Seen, sources: Above) -> bool:
        """Whether the next loop of the scheduler tells a task to fail, whatever happens until then.

        What makes it fail is there already. If something skips it in the same loop, the failure stands in the end:
        `MappedTaskUpstreamDep` overwrites no failure, and `TriggerRuleDep` everything. A skipped setup comes before the
        rule, though, and some rules skip where others fail.
        """
        setups, direct = Above(seen.indirect_setups), Above(seen.direct)
        if sources.now(F | U) and task.trigger_rule in SKIPPING_WITH_OTHERS:
            return not setups.now(K) and not direct.now(K)
        if self._is_heedless(task):
            return False
        if setups.now(F | U):
            # Its own rule is not looked at any more, unless it has been told to fail before.
            return not sources.some(F | U)
        return task.trigger_rule in FAILING_WITH_OTHERS and direct.now(F | U) and not setups.now(K)

    def _fails_before_skips(self, task: Task) -> bool:
        """Whether a task that fails with others, and is skipped with others, sees one that failed before any skipped.

        A task above that is only about to be run may skip itself. If it waits for the very end because of which another
        task above is told to fail, it is scheduled by no loop that has not told that. Airflow 3 has no scheduling
        beside the loop, which reads all instances of a run at once (`DagRun.task_instance_scheduling_decisions`).
        """
        above = self.graph.upstream[task.task_id]
        if task.trigger_rule != "all_success" or any(self._is_tangled(task.task_id, one) for one in above):
            return False
        told = frozenset[tuple[str, int]]().union(*map(self._reasons_to_fail, above))
        skipping = [one for one in above if any(ends & K for ends in self.outlook(one))]
        return all(told & self._awaited(one) for one in skipping)

    def _reasons_to_fail(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return the instances of which each suffices for the next loop to tell all of a waiting task to fail."""
        failing = self.graph.tasks[task_id].trigger_rule in FAILING_WITH_OTHERS and set(self.outlook(task_id)) == {U}
        return self._ended_above(task_id, F | U) if failing else frozenset()

    def _awaited(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return ended instances that a loop must have seen to run a waiting task that nothing but itself skips."""
        rule = self.graph.tasks[task_id].trigger_rule
        if task_id not in self._skipped_only_by_itself or rule not in WAITING_FOR_ALL:
            return frozenset()
        above = map(self._awaited_to_end, self.graph.upstream[task_id])
        return self._ended_above(task_id, ANY).union(*above)

    def _awaited_to_end(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return ended instances that a loop must have seen for a waiting task to end, one way or another."""
        reasons = self._reasons_to_fail(task_id)
        if not any(ends & (U | R) for ends in self.outlook(task_id)):
            return self._awaited(task_id)
        # Any of several reasons would do, or something else that fails it.
        others = self.graph.indirect_setups.get(task_id) or self._sources(task_id).now(F | U)
        return reasons if len(reasons) == 1 and not others else frozenset()

    def _ended_above(self, task_id: str, ended: Ends) -> frozenset[tuple[str, int]]:
        """Return what has ended so, for good, of what all instances of a task see."""
        return frozenset(
            (above, index)
            for above in self.graph.upstream[task_id]
            if not self.is_sibling(task_id, above)
            for ends, found in self.outlook(above).items()
            if ends & NOW and ends & ended
            for index in found
        )

    def _is_heedless(self, task: Task) -> bool:
        """Whether a task waits for nothing."""
        return task.trigger_rule == HEEDLESS or not self.graph.upstream[task.task_id]

    def _ends_by_rule(self, task: Task, seen: _Seen) -> Ends:
        if self._is_heedless(task):
            return RUN
        ends = ends_by(task.trigger_rule, Above(seen.direct, seen.setups))
        if ends & U and ends & K and self._fails_before_skips(task):
            ends &= ~K
        if task.trigger_rule in RACING and self.graph.mapped_groups(task.task_id):
            ends |= ends_by(task.trigger_rule, Above(self._everything(task.task_id).direct))
        return _unless_harmed(ends, Above(seen.indirect_setups), allowed=S | R)

    def above(self, task_id: str) -> tuple[str, ...]:
        """Return the tasks that decide whether a task is run, but for those that expand it."""
        return self.graph.upstream[task_id] + self.graph.indirect_setups.get(task_id, ())

    def is_sibling(self, task_id: str, above: str) -> bool:
        """Tell whether a task sees, of another one, only what has the same index (`_get_relevant_map_indexes`)."""
        groups = self.graph.mapped_groups(task_id)
        return bool(groups) and groups == self.graph.mapped_groups(above) and not self._is_tangled(task_id, above)

    def _is_tangled(self, task_id: str, above: str) -> bool:
        """Whether a mapping within a mapping makes it hard to tell what a task sees of another one."""
        mine, others = self.graph.mapped_groups(task_id), self.graph.mapped_groups(above)
        tasks = self.graph.tasks
        inner = tasks[task_id].is_mapped or tasks[above].is_mapped
        return not set(mine).isdisjoint(others) and (mine != others or inner)


def foreseeable(graph: Graph, states: States) -> bool:
    """Whether a forecast can tell more than that all may still go well."""
    harmless = all(BAD.isdisjoint(of_task) for of_task in states.values())
    return not harmless or graph.has_dead_ends


def _unless_harmed(ends: Ends, above: Above, *, allowed: Ends) -> Ends:
    """Return what becomes of some ends where, besides the rule, everything in `above` must end in an allowed state."""
    if above.some(F | U):
        ends |= U
    if above.some(K):
        ends |= K
    if above.some(R):
        ends |= R
    return ends if above.every(allowed) else ends & ~RUN


def _add(outlook: dict[_T, AbstractSet[int]], key: _T, indexes: AbstractSet[int]) -> None:
    if indexes:
        found = outlook.get(key)
        outlook[key] = indexes if found is None else found | indexes
