"""Prediction: how each task instance of a running run can still end.

Airflow propagates a failure one level of the graph per loop of its scheduler. A prediction follows it to the end at
once: it goes down the graph in topological order and gives each instance its set of possible ends (`trigger_rules`). An
instance that cannot end in `success` is certain to have no value. The sets may be too large, but never too small, so a
failure that is reported early is always right. What users do (clear, mark, change the DAG) is not predicted.

A prediction is kept up to date: after a change only the tasks whose instances changed are judged again, and those below
them as far as that changes how they can end. The result is that of judging all tasks.

How one task is judged, from the states of its instances and the ends of its upstream:
    _judge                              state known, or rule met: its ends follow from the state alone
      └─ _predict_waiting               the rule is not met yet
           ├─ _predict_expanded         instances exist, or the task is not mapped
           │    ├─ _group_by_view       instances with the same view of their upstream, so that each view is ruled once
           │    └─ _predict_ends        rule, indirect setups and expansion, applied to one view (`waiting_ends`)
           └─ _predict_unexpanded       one instance with index -1 stands for those that will exist

Examples, with `✗` failed, `✓` success, `…` running, `?` waiting:

    _predict_ends               a✗ ─► b?           `all_success`: b becomes upstream_failed
    _group_by_view              [ a(0)✗ ─► b(0)?   a mapped group: b(0) sees a(0) only, so b(1) can succeed
                                  a(1)✓ ─► b(1)? ]
    _predict_unexpanded         list… ─► work(-1)? ─► sum?     work has no indexes yet: all its instances may succeed
    _source_ends                list✗ ─► work(-1)?  work is mapped over the value of list, so it cannot be expanded
    skips_downstream            branch… ─► x? ─► y?  branch may skip x and y, whatever their rules
    fails_before_skips          a✗ ─► b?  ─► d?    c (`none_skipped`) may skip itself, and so d; but a loop that runs c
                                 └─► c? ──┘        has seen a fail, so it has failed b before: d fails
    causes                      {a} for b above: each of these instances is enough to fail b in the next loop
    awaited_to_run              {a} for c above: a loop that runs c has seen a end. awaited_to_end: the same to end c
    is_nested                   [ x ─► y(mapped) ]   mapped inside a mapped group: any end is possible
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from stream_server.domain.graph import Graph
from stream_server.domain.iterations import is_gate_open
from stream_server.domain.judgement import (
    UNKNOWN,
    Judgement,
    PossibleStates,
    Upstream,
    UpstreamView,
    add_indexes,
    build_judgement,
    extend_view,
    look_upstream,
)
from stream_server.domain.prediction_plan import MappedPlan, TaskPlan, plan_of
from stream_server.domain.trigger_rules import ANY, FAILURE, NONE, Ends, ends_once_run
from stream_server.domain.waiting_ends import (
    CAN_SUCCEED,
    FAILS,
    MUST_FAIL,
    Situation,
    bit_of,
    find_waiting_ends,
    join_bits,
)

UNSUCCESSFUL_STATES = frozenset({"failed", "upstream_failed", "skipped", "removed"})
"""States in which a task instance has ended without a value."""

InstanceStates: TypeAlias = Mapping[str, Mapping[str | None, AbstractSet[int]]]
"""By task and state, the indexes of the instances in that state."""

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

_UNEXPANDED = frozenset({-1})

MAX_MEMO = 50_000
"""Judgements that are kept for the tasks of a DAG. They do not depend on the run."""


class Prediction:
    """How every task instance of a run can end.

    Args:
        graph: The DAG.
        states: The instances of the run, in loops of the newest iteration. They are not copied: `add_changes`
            and `advance` must be called after each change.
        newest_iteration: Returns the newest iteration of a task in a loop.
    """

    def __init__(
        self, graph: Graph, states: InstanceStates, newest_iteration: Callable[[str], int | None] = lambda _: None
    ) -> None:
        self.graph = graph
        self.states = states
        self._newest_iteration = newest_iteration
        self.failing_tasks: set[str] = set()
        """Tasks of which an instance is certain to end as `failed` or `upstream_failed`."""

        self._plan = plan_of(graph)
        self._judgements = [UNKNOWN] * len(self._plan.tasks)
        self._scope_ends: list[int | None] = [None] * len(self._plan.scopes)
        # What is to be judged again, in topological order: tasks at even places, and each scope of setups at the odd
        # place after its last setup.
        self._is_due = bytearray(2 * len(self._plan.tasks))
        self._changed: set[int] = set()
        for plan in self._plan.tasks:
            self._store(plan, self._judge(plan))

    def add_changes(self, changed: Collection[str]) -> None:
        """Take note of tasks whose instances have changed, for `advance`."""
        numbers = self._plan.numbers
        for task_id in changed:
            number = numbers.get(task_id)
            if number is not None:
                self._changed.add(number)
                self._is_due[2 * number] = 1

    def advance(self, at_most: int | None = None) -> bool:
        """Judge what is due, up to a number of tasks. Return whether nothing is due any more.

        Before that, the judgements are a mixture of old and new ones.
        """
        place, judged = -1, 0
        while self._changed and (place := self._is_due.find(1, place + 1)) >= 0:
            if judged == at_most:
                return False
            self._is_due[place] = 0
            judged += 1
            number, is_scope = divmod(place, 2)
            if is_scope:
                self._update_scopes_after(number)
            else:
                self._update_task(number)
        self._changed.clear()
        return True

    def possible_states(self, task_id: str) -> PossibleStates:
        """Return how the instances of a task can end. Index -1 of an unexpanded task stands for its later instances."""
        return self._judgement(task_id).possible

    def must_fail(self, task_id: str) -> frozenset[int]:
        """Return the indexes of the instances that are certain to end as `failed` or `upstream_failed`."""
        possible = self.possible_states(task_id)
        return frozenset().union(*(found for ends, found in possible.items() if not ends & ANY & ~FAILURE))

    def failing_upstream(self, task_id: str) -> list[str] | None:
        """Return the failing tasks that decide whether a task is run; `None` if the task may expand."""
        number = self._plan.numbers.get(task_id)
        if number is None:
            return []
        plan = self._plan.tasks[number]
        if plan.mapped is not None:
            return None
        failing = {one for one in plan.upstream + plan.indirect_setups if self._judgements[one].ends & FAILS}
        return [self._plan.tasks[one].task_id for one in failing]

    def _judgement(self, task_id: str) -> Judgement:
        number = self._plan.numbers.get(task_id)
        return UNKNOWN if number is None else self._judgements[number]

    def _store(self, plan: TaskPlan, judgement: Judgement) -> None:
        self._judgements[plan.number] = judgement
        if judgement.ends & MUST_FAIL:
            self.failing_tasks.add(plan.task_id)
        elif self.failing_tasks:
            self.failing_tasks.discard(plan.task_id)

    def _update_scopes_after(self, setup: int) -> None:
        plan = self._plan
        for scope in plan.scopes_after(setup):
            if self._update_scope(scope):
                for one in plan.scopes[scope].tasks:
                    self._is_due[2 * one] = 1

    def _update_task(self, number: int) -> None:
        plan, is_due = self._plan, self._is_due
        if self._judge_again(plan.tasks[number], is_changed=number in self._changed):
            for one in plan.tasks[number].dependents:
                is_due[2 * one] = 1
            for scope in plan.scopes_of(number):
                is_due[2 * plan.scopes[scope].setups[-1] + 1] = 1

    def _judge_again(self, plan: TaskPlan, *, is_changed: bool) -> bool:
        """Judge a task, and return whether that may matter to those that depend on it."""
        before, after = self._judgements[plan.number], self._judge(plan)
        if after is before:
            return False
        self._store(plan, after)
        if after[1:] != before[1:]:
            return True
        # Tasks in the same mapped group also see which instances have which ends. Where instances have changed, the
        # sets of `before` have changed in place, so they cannot be compared.
        return plan.mapped is not None and (is_changed or after.possible != before.possible)

    def _judge(self, plan: TaskPlan) -> Judgement:
        """Return the judgement of a task; that of a loop's gate is open while another iteration may follow."""
        judgement = self._judge_iteration(plan)
        loop = self.graph.loop_of(plan.task_id)
        if loop is None or loop.gate_task_id != plan.task_id or not judgement.ends & CAN_SUCCEED:
            return judgement
        is_open = is_gate_open(loop, self.states.get(plan.task_id), self._newest_iteration(plan.task_id))
        return UNKNOWN._replace(skips_downstream=self.graph.has_decider(loop)) if is_open else judgement

    def _judge_iteration(self, plan: TaskPlan) -> Judgement:
        upstream = look_upstream(plan, self._judgements)
        states = self.states.get(plan.task_id)
        if not states:
            return UNKNOWN._replace(skips_downstream=upstream.may_skip or plan.is_decider)
        if plan.mapped is not None or len(states) > 1:
            return self._judge_instances(plan, upstream, states)
        ((state, indexes),) = states.items()
        if indexes != _UNEXPANDED:
            return self._judge_instances(plan, upstream, states)
        # Most tasks have one instance, and share its judgement with others.
        key = plan.kind, state, upstream, self._ends_of(plan.setups), self._ends_of_scope(plan.scope)
        memo = self._plan.memo
        judgement = memo.get(key)
        if judgement is None:
            judgement = self._judge_instances(plan, upstream, {state: _UNEXPANDED})
            if len(memo) >= MAX_MEMO:
                memo.clear()
            memo[key] = judgement
        return judgement

    def _judge_instances(
        self, plan: TaskPlan, upstream: Upstream, states: Mapping[str | None, AbstractSet[int]]
    ) -> Judgement:
        skipped = Ends.SKIPPED if plan.is_skipped_by_any_failure or upstream.may_skip else NONE
        possible: dict[Ends, AbstractSet[int]] = {}
        waiting: AbstractSet[int] = frozenset()
        for state, indexes in states.items():
            if state in _SCHEDULEABLE_STATES:
                waiting = waiting | indexes if waiting else indexes
            elif (end := END_OF_STATE.get(state)) is not None:
                # A decision to skip overwrites states that the scheduler set (`ti_skip_downstream`,
                # `_stop_remaining_tasks`).
                overwritten = skipped if end in {Ends.UPSTREAM_FAILED, Ends.REMOVED} else NONE
                add_indexes(possible, end | (overwritten or Ends.ENDED), indexes)
            else:
                add_indexes(possible, ends_once_run(Ends.RUN) if state in _RULE_MET_STATES else ANY, indexes)
        # Together with a rule the scheduler evaluates what the tasks above have decided (`NotPreviouslySkippedDep`).
        if plan.follows_decider:
            skipped = Ends.SKIPPED
        is_skipped_only_by_itself = not possible and not skipped
        if waiting:
            for ends, indexes in self._predict_waiting(plan, upstream, waiting):
                add_indexes(possible, ends_once_run(ends) | skipped, indexes)
                if ends & Ends.SKIPPED:
                    is_skipped_only_by_itself = False
        return build_judgement(
            plan,
            upstream,
            possible,
            is_skipped_only_by_itself=is_skipped_only_by_itself,
            sources=self._source_ends(plan),
        )

    def _predict_waiting(
        self, plan: TaskPlan, upstream: Upstream, indexes: AbstractSet[int]
    ) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield the ends of instances whose rule is not met yet."""
        mapped = plan.mapped
        if mapped is None:
            yield self._predict_ends(plan, upstream, self._view_all_upstream(plan)), indexes
        elif mapped.is_nested:
            yield ANY, indexes
        elif -1 in indexes:
            yield from self._predict_unexpanded(plan, mapped, upstream)
            yield from self._predict_expanded(plan, mapped, upstream, indexes - _UNEXPANDED)
        else:
            yield from self._predict_expanded(plan, mapped, upstream, indexes)

    def _predict_expanded(
        self, plan: TaskPlan, mapped: MappedPlan, upstream: Upstream, indexes: AbstractSet[int]
    ) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        for view, alike in self._group_by_view(plan, mapped, indexes).items():
            yield self._predict_ends(plan, upstream, view), alike

    def _predict_unexpanded(
        self, plan: TaskPlan, mapped: MappedPlan, upstream: Upstream
    ) -> Iterator[tuple[Ends, AbstractSet[int]]]:
        """Yield the ends of the instances that a task will have, or of index -1 if it may stay without any.

        After one task of a mapped group is expanded, the indexes of the others are known. Whether a task that is not
        expanded itself sees all of those instances or none depends on the rule and on the version of Airflow.
        """
        ((ends, alone),) = self._predict_expanded(plan, mapped, upstream, _UNEXPANDED)
        removed = Ends.REMOVED | Ends.ENDED
        indexes = frozenset[int]().union(
            *(
                found
                for number in mapped.same_index_only
                for end, found in self._judgements[number].possible.items()
                if end != removed
            )
        ) - {-1}
        if indexes:
            ends |= self._predict_ends(plan, upstream, self._view_all_upstream(plan))
        if not ends & Ends.RUN:
            # Airflow removes an instance only if there are several.
            yield ends & ~Ends.REMOVED or ends, alone
        elif mapped.is_mapped_over_nothing:
            failed = NONE if mapped.is_count_known else Ends.UPSTREAM_FAILED
            yield ends & ~(Ends.RUN | Ends.REMOVED) | Ends.SKIPPED | failed, alone
        elif indexes:
            for later, alike in self._predict_expanded(plan, mapped, upstream, indexes):
                yield later | ends & ~Ends.RUN, alike
        else:
            yield ANY, alone

    def _view_all_upstream(self, plan: TaskPlan) -> UpstreamView:
        return UpstreamView(self._ends_of(plan.upstream), self._ends_of(plan.setups), self._ends_of_scope(plan.scope))

    def _ends_of(self, numbers: tuple[int, ...]) -> int:
        ends = 0
        for number in numbers:
            ends |= self._judgements[number].ends
        return ends

    def _ends_of_scope(self, scope: int) -> int:
        """Return how the setups can end that a task needs beyond its direct upstream."""
        if scope < 0:
            return 0
        if self._scope_ends[scope] is None:
            self._update_scope(scope)
        return self._scope_ends[scope] or 0

    def _update_scope(self, scope: int) -> bool:
        """Look again how the setups of a scope can end, and return whether that has changed."""
        ends = self._ends_of(self._plan.scopes[scope].setups)
        is_changed = ends != self._scope_ends[scope]
        self._scope_ends[scope] = ends
        return is_changed

    def _group_by_view(
        self, plan: TaskPlan, mapped: MappedPlan, indexes: AbstractSet[int]
    ) -> dict[UpstreamView, AbstractSet[int]]:
        """Group instances by the view that they have of their upstream.

        Inside a mapped group an instance sees, of the other tasks, the instance with its own index.
        """
        alike: dict[UpstreamView, AbstractSet[int]] = {UpstreamView(): indexes} if indexes else {}
        for number in plan.upstream + plan.indirect_setups:
            judgement = self._judgements[number]
            if number not in mapped.same_index_only:
                alike = {extend_view(plan, view, number, judgement.ends): found for view, found in alike.items()}
                continue
            split: dict[UpstreamView, AbstractSet[int]] = {}
            # All instances see index -1 of a task that is not fully expanded; index -1 sees no other instance.
            common = judgement.unexpanded
            for view, sharing in alike.items():
                rest = sharing
                for ends, found in judgement.possible.items():
                    if both := (rest & found) - _UNEXPANDED:
                        add_indexes(split, extend_view(plan, view, number, common | bit_of(ends)), both)
                        rest = rest - both
                if rest:
                    missing = bit_of(ANY) if rest != _UNEXPANDED else 0
                    add_indexes(split, extend_view(plan, view, number, common or missing), rest)
            alike = split
        return alike

    def _predict_ends(self, plan: TaskPlan, upstream: Upstream, view: UpstreamView) -> Ends:
        """Return how waiting instances with this view can end."""
        mapped = plan.mapped
        situation = Situation(
            rule=plan.rule,
            has_upstream=bool(plan.upstream),
            may_expand=mapped is not None,
            direct=view.direct,
            setups=view.setups,
            indirect_setups=view.indirect_setups,
            sources=self._source_ends(plan) if mapped is not None else 0,
            everything=self._view_all_upstream(plan).direct
            if mapped is not None and mapped.sees_all_in_some_versions
            else 0,
        )
        is_unclear = mapped is not None and mapped.has_nested_upstream
        return find_waiting_ends(
            situation, upstream.fails_before_skips and plan.rule == "all_success" and not is_unclear
        )

    def _source_ends(self, plan: TaskPlan) -> int:
        """Return the ends of the tasks that a task is mapped over, as `MappedTaskUpstreamDep` sees them: unexpanded."""
        unknown = bit_of(ANY) if plan.has_unknown_source else 0
        return unknown | join_bits([self._judgements[number].unexpanded for number in plan.sources])
