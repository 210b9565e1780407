"""The structure of a DAG, read from what Airflow serialised.

The shape is that of `airflow.serialization.serialized_objects.DagSerialization`, the same in its versions 1 to 3 for
what is needed here; everything else is skipped while reading. What only refines the structure (rules, groups, marks) is
read leniently: a shape that nobody knows is as if it were not there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec

from stream_server.domain.task_groups import NO_GROUPS, TaskGroups, parse_task_groups
from stream_server.domain.trigger_rules import MAY_SKIP_ON_SUCCESS

RESULT_PARAM = "stream_result"
"""Task-level param by which an author marks a result task, on any Airflow 3."""

RESULT_TAG = "stream-result:"
"""Prefix of a DAG tag that names a result task."""

DEFAULT_TRIGGER_RULE = "all_success"
"""Rule of a task that names none (`airflow.task.trigger_rule.TriggerRule`)."""

_PARTIAL_KWARGS = "partial_kwargs"
_EXPAND_INPUTS = ("expand_input", "op_kwargs_expand_input")


class Task(msgspec.Struct, frozen=True):
    """An operator, mapped or not."""

    task_id: str
    downstream_task_ids: list[str] = []
    is_setup: bool = False
    is_teardown: bool = False
    on_failure_fail_dagrun: bool = False
    trigger_rule: str = DEFAULT_TRIGGER_RULE
    is_mapped: bool = False
    can_skip_downstream: bool = False
    """Whether it may decide that others are skipped: it branches, or short-circuits."""

    marked: bool = False
    """Whether the author said, with a param, that it answers."""

    expanded_by: frozenset[str] = frozenset()
    """Tasks whose return values say how often a mapped task is run."""

    is_empty: bool = False
    """Whether it is mapped over no values, as the DAG says."""

    operator: str = ""
    """What kind of task it is, as Airflow's pages name it."""


class MappedGroup(msgspec.Struct, frozen=True):
    """A task group that is run once for each of some values."""

    group_id: str
    expanded_by: frozenset[str]
    """Tasks whose return values say how often."""

    has_no_values: bool
    """Whether there are no values, as the DAG says."""


class _SerializedOperator(msgspec.Struct):
    fields: dict[str, Any] = msgspec.field(name="__var")


class _SerializedDag(msgspec.Struct):
    tasks: list[_SerializedOperator]
    tags: Any = None
    fail_fast: Any = None
    task_group: Any = None


class _SerializedDocument(msgspec.Struct):
    dag: _SerializedDag


_decoder = msgspec.json.Decoder(_SerializedDocument)


class Graph:
    """Tasks and their order.

    Args:
        tasks: All tasks of the DAG.
        groups: By task, the mapped task groups around it, the innermost first, each with the tasks that say how often
            it is run.
        named: Tasks that tags of the DAG name as result tasks.
        fail_fast: Whether the first failure ends all that is not a teardown.
        tree: The task groups, for those who look at it.
    """

    def __init__(
        self,
        tasks: list[Task],
        groups: Mapping[str, tuple[MappedGroup, ...]] | None = None,
        *,
        named: Collection[str] = (),
        fail_fast: bool = False,
        tree: TaskGroups = NO_GROUPS,
    ) -> None:
        self.tasks = {task.task_id: task for task in tasks}
        self.fail_fast = fail_fast
        self.task_groups = tree
        self._iter_mapped_groups = groups or {}
        self._tagged_tasks = frozenset(named)

    @classmethod
    def parse(cls, data: str | bytes | None, compressed: bytes | None = None) -> Graph:
        """Read `serialized_dag.data`, or `data_compressed` where `[core] compress_serialized_dags` is set.

        Raises:
            msgspec.MsgspecError: The text has another shape than Airflow 3 writes.
        """
        text = zlib.decompress(compressed) if compressed else data or b""
        dag = _decoder.decode(text).dag
        tags = dag.tags if isinstance(dag.tags, list) else []
        return cls(
            [_parse_operator(operator.fields) for operator in dag.tasks],
            dict(_iter_mapped_groups(dag.task_group)),
            named=[tag.removeprefix(RESULT_TAG) for tag in tags if isinstance(tag, str) and tag.startswith(RESULT_TAG)],
            fail_fast=dag.fail_fast is True,
            tree=parse_task_groups(dag.task_group),
        )

    @cached_property
    def marked_tasks(self) -> frozenset[str]:
        """The tasks that the author marked as answering, by param or by tag."""
        return frozenset(one for one, task in self.tasks.items() if task.marked or one in self._tagged_tasks)

    @cached_property
    def upstream(self) -> dict[str, tuple[str, ...]]:
        """The tasks directly above each task, sorted."""
        above: dict[str, list[str]] = {task_id: [] for task_id in self.tasks}
        for task_id in sorted(self.tasks):
            for below in self.downstream(task_id):
                above[below].append(task_id)
        return {task_id: tuple(others) for task_id, others in above.items()}

    @cached_property
    def topological_order(self) -> tuple[str, ...]:
        """All tasks, each behind those above it; those in a circle, which Airflow refuses, are left out."""
        waits_for = {task_id: len(above) for task_id, above in self.upstream.items()}
        order = [task_id for task_id, count in waits_for.items() if not count]
        for task_id in order:
            for below in self.downstream(task_id):
                waits_for[below] -= 1
                if not waits_for[below]:
                    order.append(below)
        return tuple(order)

    def downstream(self, task_id: str) -> Iterator[str]:
        """Yield the tasks directly below a task."""
        return (below for below in dict.fromkeys(self.tasks[task_id].downstream_task_ids) if below in self.tasks)

    def mapped_group_ids(self, task_id: str) -> tuple[str, ...]:
        """Return the mapped task groups around a task, the innermost first."""
        return tuple(group.group_id for group in self._iter_mapped_groups.get(task_id, ()))

    def may_expand(self, task_id: str) -> bool:
        """Whether a task has an instance for each of some values: it is mapped, or a group around it is."""
        return self.tasks[task_id].is_mapped or task_id in self._iter_mapped_groups

    def is_mapped_over_nothing(self, task_id: str) -> bool:
        """Whether a task is run for each of no values, as the DAG says."""
        return self.tasks[task_id].is_empty or any(
            group.has_no_values for group in self._iter_mapped_groups.get(task_id, ())
        )

    @cached_property
    def may_skip_on_success(self) -> bool:
        """Whether a task may be skipped although all goes well."""
        return any(
            task.trigger_rule in MAY_SKIP_ON_SUCCESS or self.is_mapped_over_nothing(task.task_id)
            for task in self.tasks.values()
        )

    @cached_property
    def idle_when_all_succeed(self) -> frozenset[str]:
        """The tasks that are skipped if all others succeed: by their own rule, or because they follow such a task."""
        idle: set[str] = set()
        for task_id in self.topological_order:
            rule, above = self.tasks[task_id].trigger_rule, self.upstream[task_id]
            if above and (rule in MAY_SKIP_ON_SUCCESS or (rule == DEFAULT_TRIGGER_RULE and not idle.isdisjoint(above))):
                idle.add(task_id)
        return frozenset(idle)

    @cached_property
    def skip_deciders(self) -> dict[str, tuple[str, ...]]:
        """The tasks above each task, near or far, that may decide that it is skipped; of most, none."""
        deciders: dict[str, tuple[str, ...]] = {}
        for task in self.tasks.values():
            for below in self._reachable(task.task_id, self.downstream) if task.can_skip_downstream else ():
                deciders[below] = (*deciders.get(below, ()), task.task_id)
        return deciders

    @cached_property
    def indirect_setups(self) -> dict[str, tuple[str, ...]]:
        """The setups that a task needs without standing directly below them, sorted; of most, none.

        A setup further above counts if a teardown of it lies below the task, or if it has none
        (`DAGNode.get_upstreams_only_setups`). Teardowns need no such setups.
        """
        setups: dict[str, tuple[str, ...]] = {}
        for setup in sorted(task.task_id for task in self.tasks.values() if task.is_setup):
            teardowns = [below for below in self.downstream(setup) if self.tasks[below].is_teardown]
            scope = self._reachable(setup, self.downstream) - set(self.downstream(setup))
            if teardowns:
                scope &= set[str]().union(*(self._reachable(one, self.upstream.__getitem__) for one in teardowns))
            for task_id in scope:
                if not self.tasks[task_id].is_teardown:
                    setups[task_id] = (*setups.get(task_id, ()), setup)
        return setups

    @staticmethod
    def _reachable(task_id: str, neighbours: Callable[[str], Iterable[str]]) -> set[str]:
        """Return all tasks that are reached from one, step by step."""
        reached: set[str] = set()
        reach = [task_id]
        while reach:
            for one in neighbours(reach.pop()):
                if one not in reached:
                    reached.add(one)
                    reach.append(one)
        return reached

    def expansion_sources(self, task_id: str) -> frozenset[str]:
        """Return the tasks that must succeed for a task to be expanded (`MappedTaskUpstreamDep`)."""
        task = self.tasks[task_id]
        if task.is_mapped:
            sources = task.expanded_by
        else:
            groups = self._iter_mapped_groups.get(task_id)
            sources = groups[0].expanded_by if groups else frozenset()
        return sources & self.tasks.keys()

    @cached_property
    def effective_leaves(self) -> frozenset[str]:
        """Tasks whose states decide the state of the run (`DagRun._tis_for_dagrun_state`)."""
        leaves = {task.task_id for task in self.tasks.values() if self._is_effective_leaf(task)}
        return frozenset(leaves) or frozenset(
            task.task_id for task in self.tasks.values() if not task.downstream_task_ids
        )

    @cached_property
    def only_leaf(self) -> str | None:
        """The task that answers where nobody has said which one does.

        It is the only effective leaf, teardowns set aside: they clean up, whether or not they may fail the run.
        """
        leaves = [
            task.task_id
            for task in self.tasks.values()
            if not task.is_teardown and all(self.tasks[below].is_teardown for below in self.downstream(task.task_id))
        ]
        return leaves[0] if len(leaves) == 1 else None

    def _is_effective_leaf(self, task: Task) -> bool:
        def ignorable(task: Task) -> bool:
            return task.is_teardown and not task.on_failure_fail_dagrun

        return not ignorable(task) and all(ignorable(self.tasks[below]) for below in self.downstream(task.task_id))


def _parse_operator(fields: dict[str, Any]) -> Task:
    """Read one operator; of a mapped one, most stands in `partial_kwargs`.

    Raises:
        msgspec.ValidationError: It has no task id, or no list of tasks below it.
    """
    partial = fields.get(_PARTIAL_KWARGS)
    partial = partial if isinstance(partial, dict) else {}

    def flag(name: str) -> bool:
        return fields.get(name, partial.get(name)) is True

    return msgspec.convert(
        {
            "task_id": fields.get("task_id"),
            "downstream_task_ids": fields.get("downstream_task_ids") or [],
            "is_setup": flag("is_setup"),
            "is_teardown": flag("is_teardown"),
            "on_failure_fail_dagrun": flag("on_failure_fail_dagrun"),
            "trigger_rule": str(fields.get("trigger_rule", partial.get("trigger_rule", DEFAULT_TRIGGER_RULE))),
            "is_mapped": flag("_is_mapped"),
            "can_skip_downstream": flag("_can_skip_downstream"),
            "marked": _has_result_mark(fields.get("params")) or _has_result_mark(partial.get("params")),
            "expanded_by": list(_iter_xcom_tasks([fields.get(name) for name in _EXPAND_INPUTS])),
            "is_empty": any(_is_empty_literal(fields.get(name)) for name in _EXPAND_INPUTS),
            "operator": str(fields.get("_operator_name") or fields.get("task_type") or ""),
        },
        Task,
    )


def _has_result_mark(params: object) -> bool:
    """Whether serialised params hold the mark: a list of pairs, or an object, of values or of serialised `Param`s."""
    if isinstance(params, dict):
        params = params.get("__var", params)
    if isinstance(params, dict):
        params = list(params.items())
    for pair in params if isinstance(params, list) else ():
        match pair:
            case (name, value) if name == RESULT_PARAM and _unwrap_param(value) is True:
                return True
    return False


def _unwrap_param(param: object) -> object:
    while isinstance(param, dict) and ("default" in param or "__var" in param):
        param = param["default"] if "default" in param else param["__var"]
    return param


def _iter_mapped_groups(
    group: object, around: tuple[MappedGroup, ...] = ()
) -> Iterator[tuple[str, tuple[MappedGroup, ...]]]:
    """Yield each task of a group, near or far within, that has mapped groups around it."""
    children = group.get("children") if isinstance(group, dict) else None
    if not isinstance(children, dict):
        return
    for name, child in children.items():
        match child:
            case ["taskgroup", dict() as inner] if inner.get("is_mapped") is True:
                values = inner.get("expand_input")
                mapped = MappedGroup(name, frozenset(_iter_xcom_tasks(values)), _is_empty_literal(values))
                yield from _iter_mapped_groups(inner, (mapped, *around))
            case ["taskgroup", inner]:
                yield from _iter_mapped_groups(inner, around)
            case ["operator", str() as task_id] if around:
                yield task_id, around


def _is_empty_literal(expand_input: object) -> bool:
    """Whether something is mapped over a literal without values (`SchedulerDictOfListsExpandInput`)."""
    match expand_input:
        case {"type": "dict-of-lists", "value": {"__var": dict() as values}}:
            return any(one == [] or (isinstance(one, dict) and one.get("__var") in ([], {})) for one in values.values())
        case {"value": []}:
            return True
    return False


def _iter_xcom_tasks(value: object) -> Iterator[str]:
    """Yield the tasks whose XComs a serialised value refers to (`airflow.serialization.definitions.xcom_arg`)."""
    if isinstance(value, list):
        for one in value:
            yield from _iter_xcom_tasks(one)
    elif isinstance(value, dict):
        if value.get("__type") == "xcomref":
            yield from _iter_reference_tasks(value.get("__var"))
        else:
            for one in value.values():
                yield from _iter_xcom_tasks(one)


def _iter_reference_tasks(reference: object) -> Iterator[str]:
    if isinstance(reference, list):
        for one in reference:
            yield from _iter_reference_tasks(one)
    elif isinstance(reference, dict):
        if isinstance(reference.get("task_id"), str):
            yield reference["task_id"]
        for name in ("arg", "args"):
            yield from _iter_reference_tasks(reference.get(name))
