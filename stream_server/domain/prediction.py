"""Prediction: how each task instance of a running run can still end.

Airflow propagates a failure one level of the graph per loop of its scheduler. A prediction follows it to the end at
once: it goes down the graph in topological order and gives each instance its set of possible ends (`trigger_rules`). An
instance that cannot end in `success` is certain to have no value. The sets may be too large, but never too small, so a
failure that is reported early is always right. What users do (clear, mark, change the DAG) is not predicted.

How one task is predicted, from the states of its instances and the ends of its upstream:
    _predict_task                       state known, or rule met: its ends follow from the state alone
      └─ _predict_waiting               the rule is not met yet
           ├─ _predict_expanded         instances exist, or the task is not mapped
           │    ├─ _group_by_view       instances with the same view of their upstream, so that each view is ruled once
           │    └─ _predict_ends        rule, indirect setups and expansion, applied to one view
           │         ├─ _fails_in_next_loop    upstream_failed, whatever else happens
           │         └─ _ends_by_rule          the trigger rule
           │              └─ _fails_before_skips    of two possible ends, the failure comes first
           └─ _predict_unexpanded       one instance with index -1 stands for those that will exist

Examples, with `✗` failed, `✓` success, `…` running, `?` waiting:

    _predict_ends               a✗ ─► b?           `all_success`: b becomes upstream_failed
    _group_by_view              [ a(0)✗ ─► b(0)?   a mapped group: b(0) sees a(0) only, so b(1) can succeed
                                  a(1)✓ ─► b(1)? ]
    _predict_unexpanded         list… ─► work(-1)? ─► sum?     work has no indexes yet: all its instances may succeed
    _expansion_sources          list✗ ─► work(-1)?  work is mapped over the value of list, so it cannot be expanded
    _skip_by_deciders           branch… ─► x? ─► y?  branch may skip x and y, whatever their rules
    _fails_before_skips         a✗ ─► b?  ─► d?    c (`none_skipped`) may skip itself, and so d; but a loop that runs c
                                 └─► c? ──┘        has seen a fail, so it has failed b before: d fails
    _failure_causes             {a} for b above: each of these instances is enough to fail b in the next loop
    _awaited_to_run             {a} for c above: a loop that runs c has seen a end. _awaited_to_end: the same to end c
    _is_nested_mapping          [ x ─► y(mapped) ]   mapped inside a mapped group: any end is possible
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
    FAILURE,
    NONE,
    SKIPS_WITH_UPSTREAM,
    VERSION_DEPENDENT_RULES,
    WAITS_FOR_ALL,
    Ends,
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
"""How the instances of one task can end: their indexes, by the set of possible ends."""

END_OF_STATE: dict[str | None, Ends] = {
    "success": Ends.SUCCESS,
    "failed": Ends.FAILED,
    "upstream_failed": Ends.UPSTREAM_FAILED,
    "skipped": Ends.SKIPPED,
    "removed": Ends.REMOVED,
}
"""States in which a task instance has ended."""

_RULE_MET_STATES = frozenset({"scheduled", "queued", "running", "deferred", "awaiting_input"})
"""States of an instance whose rule was met; the scheduler does not evaluate it again."""

_SCHEDULEABLE_STATES = frozenset({None, "up_for_retry", "up_for_reschedule"})
"""States in which the scheduler evaluates the rule (`SCHEDULEABLE_STATES`)."""

_NO_INSTANCES: PossibleStates = {ANY: frozenset({-1})}
"""Of a task that has no instances yet. Airflow may still create some."""


class _UpstreamView(NamedTuple):
    """How the upstream of one instance, or of several with the same view, can end."""

    direct: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """The setups among the direct ones."""

    indirect_setups: frozenset[Ends] = frozenset()


class Prediction:
    """How every task instance of a run can end.

    Args:
        graph: The DAG.
        states: The instances of the run. They are not copied, so a prediction is valid until the next change.
    """

    def __init__(self, graph: Graph, states: InstanceStates) -> None:
        self.graph = graph
        self.states = states
        self._possible_states: dict[str, PossibleStates] = {}
        self._skipped_only_by_itself: set[str] = set()
        """Waiting tasks that nothing upstream can skip."""

        for task_id in graph.topological_order:
            self._possible_states[task_id] = self._predict_task(task_id)

    def possible_states(self, task_id: str) -> PossibleStates:
        """Return how the instances of a task can end. Index -1 of an unexpanded task stands for its later instances."""
        return self._possible_states.get(task_id, _NO_INSTANCES)

    def cannot_succeed(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances whose value is certain to be missing from the result.

        An instance that may be removed is not missing, unless all are.
        """
        possible = self.possible_states(task_id)
        missing = [found for ends, found in possible.items() if not ends & (Ends.SUCCESS | Ends.REMOVED)]
        if not missing and not any(ends & Ends.SUCCESS for ends in possible):
            missing = list(possible.values())
        return frozenset().union(*missing)

    def must_fail(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to end as `failed` or `upstream_failed`."""
        possible = self.possible_states(task_id)
        return frozenset().union(*(found for ends, found in possible.items() if not ends & ANY & ~FAILURE))

    def _predict_task(self, task_id: str) -> PossibleStates:
        states = self.states.get(task_id)
        if not states:
            return _NO_INSTANCES
        is_fail_fast = self.graph.fail_fast and not self.graph.tasks[task_id].is_teardown
        skipped = Ends.SKIPPED if is_fail_fast else self._skip_by_deciders(task_id)
        possible: dict[Ends, AbstractSet[int]] = {}
        waiting: AbstractSet[int] = frozenset()
        for state, indexes in states.items():
            if state in _SCHEDULEABLE_STATES:
                waiting |= indexes
            elif (end := END_OF_STATE.get(state)) is not None:
                # A decision to skip overwrites states that the scheduler set (`ti_skip_downstream`,
                # `_stop_remaining_tasks`).
                overwritten = skipped if end in {Ends.UPSTREAM_FAILED, Ends.REMOVED} else NONE
                _add_indexes(possible, end | (overwritten or Ends.ENDED), indexes)
            else:
                _add_indexes(possible, ends_once_run(Ends.RUN) if state in _RULE_MET_STATES else ANY, indexes)
        # Together with a rule the scheduler evaluates what the tasks above have decided (`NotPreviouslySkippedDep`).
        if any(self.graph.tasks[upstream].can_skip_downstream for upstream in self.graph.upstream[task_id]):
            skipped = Ends.SKIPPED
        if not possible and not skipped:
            self._skipped_only_by_itself.add(task_id)
        for ends, indexes in self._predict_waiting(task_id, waiting):
            _add_indexes(possible, ends_once_run(ends) | skipped, indexes)
            if ends & Ends.SKIPPED:
                self._skipped_only_by_itself.discard(task_id)
        return possible

    def _skip_by_deciders(self, task_id: str) -> Ends:
        """Return `SKIPPED` if an upstream task, direct or not, may still decide to skip this one, whatever its rule."""
        deciders = self.graph.skip_deciders.get(task_id, ())
        return Ends.SKIPPED if any(self._may_run(decider) for decider in deciders) else NONE

    def _may_run(self, task_id: str) -> bool:
        return any(ends & Ends.SUCCESS and not ends & Ends.ENDED for ends in self.possible_states(task_id))

    def _predict_waiting(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield the ends of instances whose rule is not met yet."""
        if not indexes:
            return
        if any(self._is_nested_mapping(task_id, upstream) for upstream in self.deciding_upstream(task_id)):
            yield ANY, indexes
        elif -1 in indexes and self.graph.may_expand(task_id):
            yield from self._predict_unexpanded(task_id)
            yield from self._predict_expanded(task_id, indexes - {-1})
        else:
            yield from self._predict_expanded(task_id, indexes)

    def _predict_expanded(self, task_id: str, indexes: AbstractSet[int]) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        for view, alike in self._group_by_view(task_id, indexes).items():
            yield self._predict_ends(task_id, view), alike

    def _predict_unexpanded(self, task_id: str) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield the ends of the instances that a task will have, or of index -1 if it may stay without any.

        After one task of a mapped group is expanded, the indexes of the others are known. Whether a task that is not
        expanded itself sees all of those instances or none depends on the rule and on the version of Airflow.
        """
        ((ends, alone),) = self._predict_expanded(task_id, frozenset({-1}))
        siblings = [
            self.possible_states(upstream)
            for upstream in self.deciding_upstream(task_id)
            if self.sees_same_index_only(task_id, upstream)
        ]
        removed = Ends.REMOVED | Ends.ENDED
        indexes = frozenset[int]().union(
            *(found for possible in siblings for end, found in possible.items() if end != removed)
        ) - {-1}
        if indexes:
            ends |= self._predict_ends(task_id, self._view_all_upstream(task_id))
        if not ends & Ends.RUN:
            # Airflow removes an instance only if there are several.
            yield ends & ~Ends.REMOVED or ends, alone
        elif self.graph.is_mapped_over_nothing(task_id):
            # The number of instances stays unknown if a factor of it is (`NotFullyPopulated`).
            is_known = not self.graph.expansion_sources(task_id) and not self.graph.mapped_group_ids(task_id)[1:]
            failed = NONE if is_known else Ends.UPSTREAM_FAILED
            yield ends & ~(Ends.RUN | Ends.REMOVED) | Ends.SKIPPED | failed, alone
        elif indexes:
            for later, alike in self._predict_expanded(task_id, indexes):
                yield later | ends & ~Ends.RUN, alike
        else:
            yield ANY, alone

    def _view_all_upstream(self, task_id: str) -> _UpstreamView:
        view = _UpstreamView()
        for upstream in self.deciding_upstream(task_id):
            view = self._extend_view(task_id, view, upstream, self.possible_states(upstream))
        return view

    def _group_by_view(self, task_id: str, indexes: AbstractSet[int]) -> dict[_UpstreamView, AbstractSet[int]]:
        """Group instances by the view that they have of their upstream.

        Inside a mapped group an instance sees, of the other tasks, the instance with its own index.
        """
        alike: dict[_UpstreamView, AbstractSet[int]] = {_UpstreamView(): indexes} if indexes else {}
        for upstream in self.deciding_upstream(task_id):
            possible = self.possible_states(upstream)
            if not self.sees_same_index_only(task_id, upstream):
                alike = {self._extend_view(task_id, view, upstream, possible): found for view, found in alike.items()}
                continue
            split: dict[_UpstreamView, AbstractSet[int]] = {}
            # All instances see index -1 of a task that is not fully expanded; index -1 sees no other instance.
            common = frozenset(ends for ends, found in possible.items() if -1 in found)
            for view, sharing in alike.items():
                rest = sharing
                for ends, found in possible.items():
                    if both := (rest & found) - {-1}:
                        _add_indexes(split, self._extend_view(task_id, view, upstream, common | {ends}), both)
                        rest = rest - both
                if rest:
                    missing = frozenset({ANY}) if rest != {-1} else frozenset()
                    _add_indexes(split, self._extend_view(task_id, view, upstream, common or missing), rest)
            alike = split
        return alike

    def _extend_view(self, task_id: str, view: _UpstreamView, upstream: str, ends: Iterable[Ends]) -> _UpstreamView:
        if upstream not in self.graph.upstream[task_id]:
            return view._replace(indirect_setups=view.indirect_setups.union(ends))
        direct = view.direct.union(ends)
        if self.graph.tasks[upstream].is_setup:
            return view._replace(direct=direct, setups=view.setups.union(ends))
        return view._replace(direct=direct)

    def _predict_ends(self, task_id: str, view: _UpstreamView) -> Ends:
        """Return how waiting instances with this view can end."""
        task = self.graph.tasks[task_id]
        sources = self._expansion_sources(task_id)
        if self._fails_in_next_loop(task, view, sources):
            return Ends.UPSTREAM_FAILED
        ends = self._ends_by_rule(task, view)
        if ends & Ends.RUN and not sources.all_can_end_in(Ends.ENDED):
            # The rule may be met before the number of instances is known; then the task fails without being expanded.
            ends |= Ends.UPSTREAM_FAILED
        ends = _constrain_ends(ends, sources, allowed=Ends.SUCCESS)
        if not self.graph.may_expand(task_id):
            ends &= ~Ends.REMOVED
        # Without any possible end the scheduler detects a deadlock and fails the run.
        return ends or Ends.RUN | ANY

    def _expansion_sources(self, task_id: str) -> UpstreamStates:
        """Return the ends of the tasks that a task is mapped over, as `MappedTaskUpstreamDep` sees them: unexpanded."""
        possible = [self.possible_states(source) for source in self.graph.expansion_sources(task_id)]
        return UpstreamStates(frozenset(ends for one in possible for ends, found in one.items() if -1 in found))

    def _fails_in_next_loop(self, task: Task, view: _UpstreamView, sources: UpstreamStates) -> bool:
        """Whether the next loop of the scheduler sets a task to `upstream_failed`, whatever happens until then.

        The cause of the failure exists already. If something skips the task in the same loop, the failure remains:
        `MappedTaskUpstreamDep` overwrites no failure, and `TriggerRuleDep` overwrites everything. A skipped setup is
        evaluated before the rule, though, and some rules skip where others fail.
        """
        setups, direct = UpstreamStates(view.indirect_setups), UpstreamStates(view.direct)
        if sources.has_ended_in(FAILURE) and task.trigger_rule in SKIPS_WITH_UPSTREAM:
            return not setups.has_ended_in(Ends.SKIPPED) and not direct.has_ended_in(Ends.SKIPPED)
        if self._ignores_upstream(task):
            return False
        if setups.has_ended_in(FAILURE):
            # The rule of the task is not evaluated, unless a source has already failed it.
            return not sources.any_can_end_in(FAILURE)
        fails = task.trigger_rule in FAILS_WITH_UPSTREAM and direct.has_ended_in(FAILURE)
        return fails and not setups.has_ended_in(Ends.SKIPPED)

    def _fails_before_skips(self, task: Task) -> bool:
        """Whether a task that fails and skips with its upstream sees a failed task before it sees a skipped one.

        An upstream task that will run may skip itself. If it waits for the same end that fails another upstream task,
        then a loop that schedules it has already failed the other one. Airflow 3 schedules only in the loop, which
        reads all instances of a run at once (`DagRun.task_instance_scheduling_decisions`).
        """
        upstream = self.graph.upstream[task.task_id]
        if task.trigger_rule != "all_success" or any(self._is_nested_mapping(task.task_id, one) for one in upstream):
            return False
        causes = frozenset[tuple[str, int]]().union(*map(self._failure_causes, upstream))
        skipping = [one for one in upstream if any(ends & Ends.SKIPPED for ends in self.possible_states(one))]
        return all(causes & self._awaited_to_run(one) for one in skipping)

    def _failure_causes(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return the ended instances each of which is enough for the next loop to fail a waiting task."""
        rule = self.graph.tasks[task_id].trigger_rule
        fails = rule in FAILS_WITH_UPSTREAM and set(self.possible_states(task_id)) == {Ends.UPSTREAM_FAILED}
        return self._ended_upstream(task_id, FAILURE) if fails else frozenset()

    def _awaited_to_run(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return the ended instances that a loop must have seen to run a waiting task that only itself can skip."""
        rule = self.graph.tasks[task_id].trigger_rule
        if task_id not in self._skipped_only_by_itself or rule not in WAITS_FOR_ALL:
            return frozenset()
        further = map(self._awaited_to_end, self.graph.upstream[task_id])
        return self._ended_upstream(task_id, ANY).union(*further)

    def _awaited_to_end(self, task_id: str) -> frozenset[tuple[str, int]]:
        """Return the ended instances that a loop must have seen for a waiting task to end in any state."""
        causes = self._failure_causes(task_id)
        if not any(ends & (Ends.UPSTREAM_FAILED | Ends.REMOVED) for ends in self.possible_states(task_id)):
            return self._awaited_to_run(task_id)
        # With several causes none of them must have been seen, nor if something else can fail the task.
        others = self.graph.indirect_setups.get(task_id) or self._expansion_sources(task_id).has_ended_in(FAILURE)
        return causes if len(causes) == 1 and not others else frozenset()

    def _ended_upstream(self, task_id: str, ended: Ends) -> frozenset[tuple[str, int]]:
        """Return the upstream instances that all instances of a task see and that have ended in one of these states."""
        return frozenset(
            (upstream, index)
            for upstream in self.graph.upstream[task_id]
            if not self.sees_same_index_only(task_id, upstream)
            for ends, found in self.possible_states(upstream).items()
            if ends & Ends.ENDED and ends & ended
            for index in found
        )

    def _ignores_upstream(self, task: Task) -> bool:
        return task.trigger_rule == ALWAYS or not self.graph.upstream[task.task_id]

    def _ends_by_rule(self, task: Task, view: _UpstreamView) -> Ends:
        if self._ignores_upstream(task):
            return Ends.RUN
        ends = apply_rule(task.trigger_rule, UpstreamStates(view.direct, view.setups))
        if ends & Ends.UPSTREAM_FAILED and ends & Ends.SKIPPED and self._fails_before_skips(task):
            ends &= ~Ends.SKIPPED
        if task.trigger_rule in VERSION_DEPENDENT_RULES and self.graph.mapped_group_ids(task.task_id):
            everything = self._view_all_upstream(task.task_id)
            ends |= apply_rule(task.trigger_rule, UpstreamStates(everything.direct))
        return _constrain_ends(ends, UpstreamStates(view.indirect_setups), allowed=Ends.SUCCESS | Ends.REMOVED)

    def deciding_upstream(self, task_id: str) -> tuple[str, ...]:
        """Return the tasks that decide whether a task is run, without those that it is mapped over."""
        return self.graph.upstream[task_id] + self.graph.indirect_setups.get(task_id, ())

    def sees_same_index_only(self, task_id: str, upstream: str) -> bool:
        """Whether an instance sees, of another task, only the one with its own index (`_get_relevant_map_indexes`)."""
        groups = self.graph.mapped_group_ids(task_id)
        if not groups or groups != self.graph.mapped_group_ids(upstream):
            return False
        return not self._is_nested_mapping(task_id, upstream)

    def _is_nested_mapping(self, task_id: str, upstream: str) -> bool:
        """Whether there is a mapping inside a mapping, so that it is unclear which upstream instances a task sees."""
        groups, upstream_groups = self.graph.mapped_group_ids(task_id), self.graph.mapped_group_ids(upstream)
        if not groups or set(groups).isdisjoint(upstream_groups):
            return False
        tasks = self.graph.tasks
        return groups != upstream_groups or tasks[task_id].is_mapped or tasks[upstream].is_mapped


def is_predictable(graph: Graph, states: InstanceStates) -> bool:
    """Whether a prediction can exclude anything: something failed, or may be skipped without a failure."""
    return graph.may_skip_on_success or not all(UNSUCCESSFUL_STATES.isdisjoint(of_task) for of_task in states.values())


def _constrain_ends(ends: Ends, required: UpstreamStates, *, allowed: Ends) -> Ends:
    """Return the ends of a task for which, in addition to its rule, all of `required` must end in an allowed state."""
    if required.any_can_end_in(FAILURE):
        ends |= Ends.UPSTREAM_FAILED
    if required.any_can_end_in(Ends.SKIPPED):
        ends |= Ends.SKIPPED
    if required.any_can_end_in(Ends.REMOVED):
        ends |= Ends.REMOVED
    return ends if required.all_can_end_in(allowed) else ends & ~Ends.RUN


def _add_indexes(possible: dict[_T, AbstractSet[int]], key: _T, indexes: AbstractSet[int]) -> None:
    if indexes:
        found = possible.get(key)
        possible[key] = indexes if found is None else found | indexes
