"""What a prediction needs to know of a DAG, computed once: per task, what it depends on and what depends on it.

Tasks are numbered in topological order, so that a task has a higher number than everything it depends on.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from stream_server.domain.graph import Graph
from stream_server.domain.trigger_rules import FAILS_WITH_UPSTREAM, VERSION_DEPENDENT_RULES, WAITS_FOR_ALL


class MappedPlan(NamedTuple):
    """Of a task that is mapped, or in a mapped group."""

    same_index_only: frozenset[int]
    """The deciding upstream of which an instance sees only the one with its own index."""

    is_nested: bool
    """Whether a mapping is inside a mapping, so that it is unclear which instances of some upstream task are seen."""

    has_nested_upstream: bool
    """The same, for the direct upstream only."""

    sees_all_in_some_versions: bool
    is_mapped_over_nothing: bool
    is_count_known: bool
    """Whether the number of its instances does not depend on values of other tasks."""


class TaskPlan(NamedTuple):
    """The fixed part of what decides how a task can end."""

    number: int
    task_id: str
    rule: str
    upstream: tuple[int, ...]
    setups: tuple[int, ...]
    """The setups among the direct upstream."""

    indirect_setups: tuple[int, ...]
    sources: tuple[int, ...]
    """Tasks that must succeed before the task can be expanded."""

    has_unknown_source: bool
    """Whether there is such a task that does not come before this one. Airflow refuses such DAGs."""

    dependents: tuple[int, ...]
    """Tasks to judge again if this one can end in other ways. Those that need it as an indirect setup are left out."""

    is_decider: bool
    """Whether it can decide to skip other tasks."""

    follows_decider: bool
    """Whether one of its direct upstream tasks is a decider."""

    is_skipped_by_any_failure: bool
    fails_with_upstream: bool
    waits_for_all: bool
    mapped: MappedPlan | None
    scope: int
    """The number of its indirect setups among the scopes of the DAG; -1 if it has none."""

    kind: int
    """Equal for tasks that are judged alike if their instances and their upstream are the same."""


class SetupScope(NamedTuple):
    """Setups, and the tasks that need just these beyond their direct upstream."""

    setups: tuple[int, ...]
    tasks: tuple[int, ...]


class PredictionPlan:
    """The plans of all tasks of a DAG, without those in a cycle."""

    def __init__(self, graph: Graph) -> None:
        self.numbers = {task_id: number for number, task_id in enumerate(graph.topological_order)}
        self.memo: dict[object, Any] = {}
        """For predictions: what does not depend on the run."""

        self._kinds: dict[object, int] = {}
        self._setup_numbers: dict[tuple[str, ...], tuple[int, ...]] = {}
        users: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        dependents: list[list[int]] = [[] for _ in self.numbers]
        scope_numbers: dict[tuple[int, ...], int] = {(): -1}
        plans = [self._plan_task(graph, task_id) for task_id in graph.topological_order]
        for plan in plans:
            for one in {*plan.upstream, *plan.sources}:
                dependents[one].append(plan.number)
            if plan.indirect_setups:
                users[plan.indirect_setups].append(plan.number)
                scope_numbers.setdefault(plan.indirect_setups, len(scope_numbers) - 1)
        self.tasks = [
            plan._replace(dependents=tuple(dependents[plan.number]), scope=scope_numbers[plan.indirect_setups])
            for plan in plans
        ]
        self.scopes = [SetupScope(setups, tuple(tasks)) for setups, tasks in users.items()]
        """Tasks that need the same setups, which can be many of both, share one scope."""

        # By setup, the scopes that contain it, and those that it completes.
        self._scopes_of: defaultdict[int, list[int]] = defaultdict(list)
        self._scopes_after: defaultdict[int, list[int]] = defaultdict(list)
        for number, scope in enumerate(self.scopes):
            self._scopes_after[scope.setups[-1]].append(number)
            for setup in scope.setups:
                self._scopes_of[setup].append(number)

    def scopes_after(self, setup: int) -> list[int]:
        """Return the scopes whose last setup in topological order is this one."""
        return self._scopes_after.get(setup, [])

    def scopes_of(self, setup: int) -> list[int]:
        """Return the scopes that contain a task."""
        return self._scopes_of.get(setup, [])

    def _plan_task(self, graph: Graph, task_id: str) -> TaskPlan:
        task, numbers = graph.tasks[task_id], self.numbers
        number = numbers[task_id]
        setup_ids = graph.indirect_setups.get(task_id, ())
        indirect = self._setup_numbers.get(setup_ids)
        if indirect is None:
            indirect = self._setup_numbers[setup_ids] = tuple(sorted(numbers[one] for one in setup_ids))
        sources = graph.expansion_sources(task_id)
        known = tuple(sorted(numbers[one] for one in sources if numbers.get(one, number) < number))
        upstream_ids = graph.upstream[task_id]
        plan = TaskPlan(
            number=number,
            task_id=task_id,
            rule=task.trigger_rule,
            upstream=tuple(numbers[one] for one in upstream_ids),
            setups=tuple(numbers[one] for one in upstream_ids if graph.tasks[one].is_setup),
            indirect_setups=indirect,
            sources=known,
            has_unknown_source=len(known) < len(sources),
            dependents=(),
            is_decider=task.can_skip_downstream,
            follows_decider=any(graph.tasks[one].can_skip_downstream for one in upstream_ids),
            is_skipped_by_any_failure=graph.fail_fast and not task.is_teardown,
            fails_with_upstream=task.trigger_rule in FAILS_WITH_UPSTREAM,
            waits_for_all=task.trigger_rule in WAITS_FOR_ALL,
            mapped=self._plan_mapping(graph, task_id) if graph.may_expand(task_id) else None,
            scope=-1,
            kind=0,
        )
        alike = plan._replace(
            number=0, task_id="", upstream=plan.upstream[:1] and (0,), setups=(), indirect_setups=indirect[:1] and (0,)
        )
        return plan._replace(kind=self._kinds.setdefault(alike, len(self._kinds)))

    def _plan_mapping(self, graph: Graph, task_id: str) -> MappedPlan:
        upstream, groups = graph.upstream[task_id], graph.mapped_group_ids(task_id)
        deciding = deciding_upstream(graph, task_id)
        return MappedPlan(
            same_index_only=frozenset(
                self.numbers[one] for one in deciding if sees_same_index_only(graph, task_id, one)
            ),
            is_nested=any(_is_nested_mapping(graph, task_id, one) for one in deciding),
            has_nested_upstream=any(_is_nested_mapping(graph, task_id, one) for one in upstream),
            sees_all_in_some_versions=bool(groups) and graph.tasks[task_id].trigger_rule in VERSION_DEPENDENT_RULES,
            is_mapped_over_nothing=graph.is_mapped_over_nothing(task_id),
            # It stays unknown if a factor of it is (`NotFullyPopulated`).
            is_count_known=not graph.expansion_sources(task_id) and not groups[1:],
        )


_plans: WeakKeyDictionary[Graph, PredictionPlan] = WeakKeyDictionary()


def plan_of(graph: Graph) -> PredictionPlan:
    """Return the plan of a DAG, computed at the first call."""
    plan = _plans.get(graph)
    if plan is None:
        plan = _plans[graph] = PredictionPlan(graph)
    return plan


def deciding_upstream(graph: Graph, task_id: str) -> tuple[str, ...]:
    """Return the tasks that decide whether a task is run, without those that it is mapped over."""
    return graph.upstream[task_id] + graph.indirect_setups.get(task_id, ())


def sees_same_index_only(graph: Graph, task_id: str, upstream: str) -> bool:
    """Whether an instance sees, of another task, only the one with its own index (`_get_relevant_map_indexes`)."""
    groups = graph.mapped_group_ids(task_id)
    if not groups or groups != graph.mapped_group_ids(upstream):
        return False
    return not _is_nested_mapping(graph, task_id, upstream)


def _is_nested_mapping(graph: Graph, task_id: str, upstream: str) -> bool:
    """Whether there is a mapping inside a mapping, so that it is unclear which upstream instances a task sees."""
    groups, upstream_groups = graph.mapped_group_ids(task_id), graph.mapped_group_ids(upstream)
    if not groups or set(groups).isdisjoint(upstream_groups):
        return False
    tasks = graph.tasks
    return groups != upstream_groups or tasks[task_id].is_mapped or tasks[upstream].is_mapped
