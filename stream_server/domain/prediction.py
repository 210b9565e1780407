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
    ALWAYS,
    ANY,
    FAILS_WITH_UPSTREAM,
    NOW,
    RUN,
    SKIPS_WITH_UPSTREAM,
    VERSION_DEPENDENT_RULES,
    WAITS_FOR_ALL,
    Ends,
    F,
    K,
    R,
    S,
    U,
    UpstreamStates,
    apply_rule,
    ends_once_run,
)

_T = TypeVar("_T")

UNSUCCESSFUL_STATES = frozenset({"failed", "upstream_failed", "skipped", "removed"})
"""States in which a task instance has ended without a value."""

InstanceStates: TypeAlias = Mapping[str, Mapping[str | None, AbstractSet[int]]]
"""By task and state, the indexes of the instances in that state."""

PossibleStates: TypeAlias = Mapping[Ends, AbstractSet[int]]
"""How the instances of one task can end: indexes, by the set of ends."""

END_OF_STATE: dict[str | None, Ends] = {"success": S, "failed": F, "upstream_failed": U, "skipped": K, "removed": R}
"""States in which a task instance has ended."""

_RULE_MET_STATES = frozenset({"scheduled", "queued", "running", "deferred", "awaiting_input"})
"""States of an instance whose rule has been met, and is looked at no more."""

_SCHEDULEABLE_STATES = frozenset({None, "up_for_retry", "up_for_reschedule"})
"""States in which the scheduler looks at the rule (`SCHEDULEABLE_STATES`)."""

_NO_INSTANCES: PossibleStates = {ANY: frozenset({-1})}
"""Of a task that has no instances yet: it may still get some."""


class _UpstreamView(NamedTuple):
    """What one instance, or several alike, sees above itself."""

    direct: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """Of the direct ones, the setups."""

    indirect_setups: frozenset[Ends] = frozenset()


class Prediction:
    """How every task instance of a run can end.

    Args:
        graph: The DAG.
        states: The instances of the run. They are not copied: a forecast is of the moment.
    """

    def __init__(self, graph: Graph, states: InstanceStates) -> None:
        self.graph = graph
        self.states = states
        self._possible_states: dict[str, PossibleStates] = {}
        self._skipped_only_by_itself: set[str] = set()
        for task_id in graph.topological_order:
            self._possible_states[task_id] = self._predict_task(task_id)

    def possible_states(self, task_id: str) -> PossibleStates:
        """Return how the instances of a task can end; those of an unexpanded one may be those that it will have."""
        return self._possible_states.get(task_id, _NO_INSTANCES)

    def cannot_succeed(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to end without a value, and to be missed.

        One that may be removed is missed by nobody, unless that is so of all.
        """
        outlook = self.possible_states(task_id)
        missed = [found for ends, found in outlook.items() if not ends & (S | R)]
        if not missed and not any(ends & S for ends in outlook):
            missed = list(outlook.values())
        return frozenset().union(*missed)

    def must_fail(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to fail, by themselves or for others."""
        return frozenset().union(
            *(found for ends, found in self.possible_states(task_id).items() if not ends & (S | K | R))
        )

    def _predict_task(self, task_id: str) -> PossibleStates:
        states = self.states.get(task_id)
        if not states:
            return _NO_INSTANCES
        skipped = K if self._is_fail_fast(task_id) else self._skip_by_deciders(task_id)
        outlook: dict[Ends, AbstractSet[int]] = {}
        waiting: AbstractSet[int] = frozenset()
        for state, indexes in states.items():
            if state in _SCHEDULEABLE_STATES:
                waiting |= indexes
            elif state in END_OF_STATE:
                # A decision to skip overwrites what no worker has done (`ti_skip_downstream`, `_stop_remaining_tasks`).
                overwritten = skipped if END_OF_STATE[state] in {U, R} else 0
                _add_indexes(outlook, END_OF_STATE[state] | (overwritten or NOW), indexes)
            else:
                _add_indexes(outlook, ends_once_run(RUN) if state in _RULE_MET_STATES else ANY, indexes)
        # One who looks at a rule also looks at what the tasks above have decided (`NotPreviouslySkippedDep`).
        decided = any(self.graph.tasks[above].can_skip_downstream for above in self.graph.upstream[task_id])
        skipped = K if decided else skipped
        if not outlook and not skipped:
            self._skipped_only_by_itself.add(task_id)
        for ends, indexes in self._predict_waiting(task_id, waiting):
            _add_indexes(outlook, ends_once_run(ends) | skipped, indexes)
            if ends & K:
                self._skipped_only_by_itself.discard(task_id)
        return outlook

    def _skip_by_deciders(self, task_id: str) -> Ends:
        """Return `skipped` if a task above, near or far, may yet decide that a task is skipped, whatever its rule."""
        return K if any(self._may_run(above) for above in self.graph.skip_deciders.get(task_id, ())) else 0

    def _is_fail_fast(self, task_id: str) -> bool:
        return self.graph.fail_fast and not self.graph.tasks[task_id].is_teardown

    def _may_run(self, task_id: str) -> bool:
        return any(ends & S and not ends & NOW for ends in self.possible_states(task_id))

    def _predict_waiting(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield how instances can end that wait for their rule to be met."""
        if not indexes:
            return
        if any(self._is_nested_mapping(task_id, above) for above in self.deciding_upstream(task_id)):
            yield ANY, indexes
        elif -1 in indexes and self.graph.may_expand(task_id):
            yield from self._predict_unexpanded(task_id)
            yield from self._predict_expanded(task_id, indexes - {-1})
        else:
            yield from self._predict_expanded(task_id, indexes)

    def _predict_expanded(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        for seen, alike in self._group_by_view(task_id, indexes).items():
            yield self._predict_ends(task_id, seen), alike

    def _predict_unexpanded(self, task_id: str) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield how the instances can end that a task will have, or itself if it comes to none.

        Once a task of the same mapped group is expanded, it is known which the others will have. Whether one that is
        not expanded itself sees all of those instances, or none, depends on the rule and on the version.
        """
        ((ends, alone),) = self._predict_expanded(task_id, frozenset({-1}))
        siblings = [
            self.possible_states(above)
            for above in self.deciding_upstream(task_id)
            if self.sees_same_index_only(task_id, above)
        ]
        indexes = frozenset[int]().union(
            *(found for outlook in siblings for end, found in outlook.items() if end != R | NOW)
        ) - {-1}
        if indexes:
            ends |= self._predict_ends(task_id, self._view_all_upstream(task_id))
        if not ends & RUN:
            # Only one of several instances is removed.
            yield ends & ~R or ends, alone
        elif self.graph.is_mapped_over_nothing(task_id):
            # Nothing times something that is not known yet is not known either (`NotFullyPopulated`).
            known = not self.graph.expansion_sources(task_id) and not self.graph.mapped_group_ids(task_id)[1:]
            yield ends & ~(RUN | R) | K | (0 if known else U), alone
        elif indexes:
            for then, alike in self._predict_expanded(task_id, indexes):
                yield then | ends & ~RUN, alike
        else:
            yield ANY, alone

    def _view_all_upstream(self, task_id: str) -> _UpstreamView:
        seen = _UpstreamView()
        for above in self.deciding_upstream(task_id):
            seen = self._extend_view(task_id, seen, above, self.possible_states(above))
        return seen

    def _group_by_view(self, task_id: str, indexes: AbstractSet[int]) -> dict[_UpstreamView, AbstractSet[int]]:
        """Sort instances by what they see above themselves: inside a mapped group, what has the same index."""
        alike: dict[_UpstreamView, AbstractSet[int]] = {_UpstreamView(): indexes} if indexes else {}
        for above in self.deciding_upstream(task_id):
            outlook = self.possible_states(above)
            if not self.sees_same_index_only(task_id, above):
                alike = {self._extend_view(task_id, seen, above, outlook): one for seen, one in alike.items()}
                continue
            split: dict[_UpstreamView, AbstractSet[int]] = {}
            # Who is not expanded, or not wholly, is seen by all, but sees none that is.
            common = frozenset(ends for ends, found in outlook.items() if -1 in found)
            for seen, sharing in alike.items():
                rest = sharing
                for ends, found in outlook.items():
                    if both := (rest & found) - {-1}:
                        _add_indexes(split, self._extend_view(task_id, seen, above, common | {ends}), both)
                        rest = rest - both
                if rest:
                    missing = frozenset({ANY}) if rest != {-1} else frozenset()
                    _add_indexes(split, self._extend_view(task_id, seen, above, common or missing), rest)
            alike = split
        return alike

    def _extend_view(self, task_id: str, seen: _UpstreamView, above: str, ends: Iterable[Ends]) -> _UpstreamView:
        if above not in self.graph.upstream[task_id]:
            return seen._replace(indirect_setups=seen.indirect_setups.union(ends))
        direct = seen.direct.union(ends)
        if self.graph.tasks[above].is_setup:
            return seen._replace(direct=direct, setups=seen.setups.union(ends))
        return seen._replace(direct=direct)

    def _predict_ends(self, task_id: str, seen: _UpstreamView) -> Ends:
        """Return how instances can end that wait, and see this."""
        task = self.graph.tasks[task_id]
        sources = self._expansion_sources(task_id)
        if self._fails_in_next_loop(task, seen, sources):
            return U
        ends = self._ends_by_rule(task, seen)
        if ends & RUN and not sources.all_can_end_in(NOW):
            # The rule may be met before it is known how often the task is run; then it is not expanded, and fails.
            ends |= U
        ends = _constrain_ends(ends, sources, allowed=S)
        if not self.graph.may_expand(task_id):
            ends &= ~R
        # Nothing that Airflow could write: a deadlock, which ends the run.
        return ends or RUN | ANY

    def _expansion_sources(self, task_id: str) -> UpstreamStates:
        """Return what says how often a task is run, as far as `MappedTaskUpstreamDep` looks: where it is unexpanded."""
        outlooks = [self.possible_states(source) for source in self.graph.expansion_sources(task_id)]
        return UpstreamStates(frozenset(ends for outlook in outlooks for ends, found in outlook.items() if -1 in found))

    def _fails_in_next_loop(self, task: Task, seen: _UpstreamView, sources: UpstreamStates) -> bool:
        """Whether the next loop of the scheduler tells a task to fail, whatever happens until then.

        What makes it fail is there already. If something skips it in the same loop, the failure stands in the end:
        `MappedTaskUpstreamDep` overwrites no failure, and `TriggerRuleDep` everything. A skipped setup comes before the
        rule, though, and some rules skip where others fail.
        """
        setups, direct = UpstreamStates(seen.indirect_setups), UpstreamStates(seen.direct)
        if sources.has_ended_in(F | U) and task.trigger_rule in SKIPS_WITH_UPSTREAM:
            return not setups.has_ended_in(K) and not direct.has_ended_in(K)
        if self._ignores_upstream(task):
            return False
        if setups.has_ended_in(F | U):
            # Its own rule is not looked at any more, unless it has been told to fail before.
            return not sources.any_can_end_in(F | U)
        return task.trigger_rule in FAILS_WITH_UPSTREAM and direct.has_ended_in(F | U) and not setups.has_ended_in(K)

    def _fails_before_skips(self, task: Task) -> bool:
        """Whether a task that fails with others, and is skipped with others, sees one that failed before any skipped.

        A task above that is only about to be run may skip itself. If it waits for the very end because of which another
        task above is told to fail, it is scheduled by no loop that has not told that. Airflow 3 has no scheduling
        beside the loop, which reads all instances of a run at once (`DagRun.task_instance_scheduling_decisions`).
        """
        above = self.graph.upstream[task.task_id]
        if task.trigger_rule != "all_success" or any(self._is_nested_mapping(task.task_id, one) for one in above):
            return False
        told = frozenset[tuple[str, int]]().union(*map(self._failure_causes, above))
        skipping = [one for one in above if any(ends & K for ends in self.possible_states(one))]
        return all(told & self._awaited_to_run(one) for one in skipping)

    def _failure_causes(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return the instances of which each suffices for the next loop to tell all of a waiting task to fail."""
        failing = self.graph.tasks[task_id].trigger_rule in FAILS_WITH_UPSTREAM and set(
            self.possible_states(task_id)
        ) == {U}
        return self._ended_upstream(task_id, F | U) if failing else frozenset()

    def _awaited_to_run(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return ended instances that a loop must have seen to run a waiting task that nothing but itself skips."""
        rule = self.graph.tasks[task_id].trigger_rule
        if task_id not in self._skipped_only_by_itself or rule not in WAITS_FOR_ALL:
            return frozenset()
        above = map(self._awaited_to_end, self.graph.upstream[task_id])
        return self._ended_upstream(task_id, ANY).union(*above)

    def _awaited_to_end(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return ended instances that a loop must have seen for a waiting task to end, one way or another."""
        reasons = self._failure_causes(task_id)
        if not any(ends & (U | R) for ends in self.possible_states(task_id)):
            return self._awaited_to_run(task_id)
        # Any of several reasons would do, or something else that fails it.
        others = self.graph.indirect_setups.get(task_id) or self._expansion_sources(task_id).has_ended_in(F | U)
        return reasons if len(reasons) == 1 and not others else frozenset()

    def _ended_upstream(self, task_id: str, ended: Ends) -> frozenset[tuple[str, int]]:
        """Return what has ended so, for good, of what all instances of a task see."""
        return frozenset(
            (above, index)
            for above in self.graph.upstream[task_id]
            if not self.sees_same_index_only(task_id, above)
            for ends, found in self.possible_states(above).items()
            if ends & NOW and ends & ended
            for index in found
        )

    def _ignores_upstream(self, task: Task) -> bool:
        """Whether a task waits for nothing."""
        return task.trigger_rule == ALWAYS or not self.graph.upstream[task.task_id]

    def _ends_by_rule(self, task: Task, seen: _UpstreamView) -> Ends:
        if self._ignores_upstream(task):
            return RUN
        ends = apply_rule(task.trigger_rule, UpstreamStates(seen.direct, seen.setups))
        if ends & U and ends & K and self._fails_before_skips(task):
            ends &= ~K
        if task.trigger_rule in VERSION_DEPENDENT_RULES and self.graph.mapped_group_ids(task.task_id):
            ends |= apply_rule(task.trigger_rule, UpstreamStates(self._view_all_upstream(task.task_id).direct))
        return _constrain_ends(ends, UpstreamStates(seen.indirect_setups), allowed=S | R)

    def deciding_upstream(self, task_id: str) -> tuple[str, ...]:
        """Return the tasks that decide whether a task is run, but for those that expand it."""
        return self.graph.upstream[task_id] + self.graph.indirect_setups.get(task_id, ())

    def sees_same_index_only(self, task_id: str, above: str) -> bool:
        """Tell whether a task sees, of another one, only what has the same index (`_get_relevant_map_indexes`)."""
        groups = self.graph.mapped_group_ids(task_id)
        return (
            bool(groups)
            and groups == self.graph.mapped_group_ids(above)
            and not self._is_nested_mapping(task_id, above)
        )

    def _is_nested_mapping(self, task_id: str, above: str) -> bool:
        """Whether a mapping within a mapping makes it hard to tell what a task sees of another one."""
        mine, others = self.graph.mapped_group_ids(task_id), self.graph.mapped_group_ids(above)
        tasks = self.graph.tasks
        inner = tasks[task_id].is_mapped or tasks[above].is_mapped
        return not set(mine).isdisjoint(others) and (mine != others or inner)


def is_predictable(graph: Graph, states: InstanceStates) -> bool:
    """Whether a forecast can tell more than that all may still go well."""
    harmless = all(UNSUCCESSFUL_STATES.isdisjoint(of_task) for of_task in states.values())
    return not harmless or graph.may_skip_on_success


def _constrain_ends(ends: Ends, above: UpstreamStates, *, allowed: Ends) -> Ends:
    """Return what becomes of some ends where, besides the rule, everything in `above` must end in an allowed state."""
    if above.any_can_end_in(F | U):
        ends |= U
    if above.any_can_end_in(K):
        ends |= K
    if above.any_can_end_in(R):
        ends |= R
    return ends if above.all_can_end_in(allowed) else ends & ~RUN


def _add_indexes(outlook: dict[_T, AbstractSet[int]], key: _T, indexes: AbstractSet[int]) -> None:
    if indexes:
        found = outlook.get(key)
        outlook[key] = indexes if found is None else found | indexes
