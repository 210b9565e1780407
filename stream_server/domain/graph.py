"""The structure of a DAG, parsed from Airflow's serialised form.

The shape is that of `airflow.serialization.serialized_objects.DagSerialization`. For the members that are used here it
is the same in its versions 1 to 3; other members are skipped. Members that only refine the structure (rules, groups,
marks) are parsed leniently: an unknown shape counts as absent.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec

from stream_server.domain.json_reader import JsonReader
from stream_server.domain.only_leaf import find_only_leaf
from stream_server.domain.setup_scopes import find_indirect_setups
from stream_server.domain.task_groups import NO_GROUPS, Loop, TaskGroups, parse_task_groups
from stream_server.domain.trigger_rules import MAY_SKIP_ON_SUCCESS

RESULT_PARAM = "stream_result"
"""Param of a task that marks it as a result task, in any Airflow 3."""

RESULT_TAG = "stream-result:"
"""Prefix of a DAG tag that names a result task."""

DEFAULT_TRIGGER_RULE = "all_success"
"""Rule of a task without a `trigger_rule` (`airflow.task.trigger_rule.TriggerRule`)."""

_DAG_MEMBERS = frozenset({"tags", "fail_fast", "task_group"})
_PARTIAL_KWARGS = "partial_kwargs"
_PUSH = "do_xcom_push"
_LOOP_GATE = "LoopGateOperator"
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
    """Whether it can decide to skip other tasks: it branches, or short-circuits."""

    has_result_mark: bool = False
    """Whether the DAG's author marked it as a result task with a param."""

    has_native_mark: bool = False
    """Whether it bears Airflow's own result mark. Airflow stores this from 3.4 on."""

    expanded_by: frozenset[str] = frozenset()
    """Tasks over whose return values it is mapped."""

    has_no_values: bool = False
    """Whether it is mapped over an empty literal."""

    operator: str = ""
    """Operator, as Airflow's UI names it."""

    returns_nothing: bool = False
    """Whether it can never return a value: Airflow does not run it, it pushes no XComs, or it is the gate of a loop."""


class MappedGroup(msgspec.Struct, frozen=True):
    """A mapped task group."""

    group_id: str
    expanded_by: frozenset[str]
    """Tasks over whose return values it is mapped."""

    has_no_values: bool
    """Whether it is mapped over an empty literal."""


class Graph:
    """Tasks and their dependencies.

    Args:
        tasks: All tasks of the DAG.
        mapped_groups: By task, the mapped task groups around it, innermost first.
        tagged_tasks: Tasks that tags of the DAG mark as result tasks.
        fail_fast: Whether the first failure skips all tasks except teardowns.
        task_groups: All task groups, and the loops among them.
    """

    def __init__(
        self,
        tasks: list[Task],
        mapped_groups: Mapping[str, tuple[MappedGroup, ...]] | None = None,
        *,
        tagged_tasks: Collection[str] = (),
        fail_fast: bool = False,
        task_groups: TaskGroups = NO_GROUPS,
    ) -> None:
        self.tasks = {task.task_id: task for task in tasks}
        self.fail_fast = fail_fast
        self.task_groups = task_groups
        self._mapped_groups = mapped_groups or {}
        self._mapped_group_ids = {
            task_id: tuple(group.group_id for group in groups) for task_id, groups in self._mapped_groups.items()
        }
        self._tagged_tasks = frozenset(tagged_tasks)

    @classmethod
    def parse(cls, data: str | bytes | None, compressed: bytes | None = None) -> Graph:
        """Return the graph of `serialized_dag.data`, or `data_compressed` if `[core] compress_serialized_dags` is set.

        Raises:
            msgspec.MsgspecError: The text does not have the shape that Airflow 3 writes, or is nested too deeply.
        """
        try:
            if compressed:
                data = zlib.decompress(compressed)
            return cls._parse(data.decode() if isinstance(data, bytes) else data or "")
        except (RecursionError, UnicodeDecodeError, zlib.error) as error:
            raise msgspec.DecodeError(f"The serialised DAG cannot be read: {error}") from None

    @classmethod
    def _parse(cls, text: str) -> Graph:
        reader = JsonReader(text)
        tasks: list[Task] | None = None
        members: dict[str, Any] = {}
        for name in reader.iter_keys():
            if name == "dag":
                tasks, members = _read_dag(reader)
            else:
                reader.read_value()
        reader.read_end()
        if tasks is None:
            raise msgspec.ValidationError("The serialised DAG has no list of tasks")
        tags, task_group = members.get("tags"), members.get("task_group")
        return cls(
            tasks,
            dict(_iter_mapped_groups(task_group)),
            tagged_tasks=[
                tag.removeprefix(RESULT_TAG)
                for tag in (tags if isinstance(tags, list) else ())
                if isinstance(tag, str) and tag.startswith(RESULT_TAG)
            ],
            fail_fast=members.get("fail_fast") is True,
            task_groups=parse_task_groups(task_group),
        )

    def prepare(self) -> None:
        """Compute what is derived from the tasks, which takes milliseconds for a large DAG."""
        for name in ("marked_tasks", "effective_leaves", "only_leaf", "idle_when_all_succeed", "may_skip_on_success"):
            getattr(self, name)

    @cached_property
    def marked_tasks(self) -> frozenset[str]:
        """The tasks that the DAG's author marked as result tasks: by param or by tag, else with Airflow's own mark."""
        marked = (one for one, task in self.tasks.items() if task.has_result_mark or one in self._tagged_tasks)
        return frozenset(marked) or frozenset(one for one, task in self.tasks.items() if task.has_native_mark)

    @cached_property
    def upstream(self) -> dict[str, tuple[str, ...]]:
        """The direct upstream tasks of each task, sorted."""
        upstream: dict[str, list[str]] = {task_id: [] for task_id in self.tasks}
        for task_id in sorted(self.tasks):
            for downstream in self.downstream(task_id):
                upstream[downstream].append(task_id)
        return {task_id: tuple(others) for task_id, others in upstream.items()}

    @cached_property
    def topological_order(self) -> tuple[str, ...]:
        """All tasks, each after its upstream. Tasks in a cycle, which Airflow refuses, are left out."""
        missing = {task_id: len(upstream) for task_id, upstream in self.upstream.items()}
        order = [task_id for task_id, count in missing.items() if not count]
        for task_id in order:
            for downstream in self.downstream(task_id):
                missing[downstream] -= 1
                if not missing[downstream]:
                    order.append(downstream)
        return tuple(order)

    def loop_of(self, task_id: str) -> Loop | None:
        """Return the task loop around a task; `None` outside of loops."""
        return self.task_groups.loop_of_task.get(task_id)

    def has_decider(self, loop: Loop) -> bool:
        """Whether a task in a loop can decide to skip other tasks."""
        return any(task.can_skip_downstream and self.loop_of(one) == loop for one, task in self.tasks.items())

    def downstream(self, task_id: str) -> Iterator[str]:
        """Yield the direct downstream tasks of a task."""
        return (one for one in dict.fromkeys(self.tasks[task_id].downstream_task_ids) if one in self.tasks)

    def mapped_group_ids(self, task_id: str) -> tuple[str, ...]:
        """Return the mapped task groups around a task, innermost first."""
        return self._mapped_group_ids.get(task_id, ())

    def may_expand(self, task_id: str) -> bool:
        """Whether a task has an instance for each of some values: it, or a group around it, is mapped."""
        return self.tasks[task_id].is_mapped or task_id in self._mapped_groups

    def is_mapped_over_nothing(self, task_id: str) -> bool:
        """Whether a task, or a group around it, is mapped over an empty literal."""
        return self.tasks[task_id].has_no_values or any(
            group.has_no_values for group in self._mapped_groups.get(task_id, ())
        )

    @cached_property
    def may_skip_on_success(self) -> bool:
        """Whether a task may be skipped although no task fails."""
        return any(
            task.trigger_rule in MAY_SKIP_ON_SUCCESS or self.is_mapped_over_nothing(task.task_id)
            for task in self.tasks.values()
        )

    @cached_property
    def idle_when_all_succeed(self) -> frozenset[str]:
        """The tasks that are skipped if all others succeed: by their own rule, or because they follow such a task."""
        idle: set[str] = set()
        for task_id in self.topological_order:
            rule, upstream = self.tasks[task_id].trigger_rule, self.upstream[task_id]
            follows_idle = rule == DEFAULT_TRIGGER_RULE and not idle.isdisjoint(upstream)
            if upstream and (rule in MAY_SKIP_ON_SUCCESS or follows_idle):
                idle.add(task_id)
        return frozenset(idle)

    @cached_property
    def indirect_setups(self) -> dict[str, tuple[str, ...]]:
        """By task, the setups that it needs and that are not its direct upstream, sorted. Tasks without are left out.

        A setup further upstream counts if a teardown of it is downstream of the task, or if it has none
        (`DAGNode.get_upstreams_only_setups`). Teardowns need no such setups.
        """
        return find_indirect_setups(self.tasks, self.topological_order, self.upstream)

    def expansion_sources(self, task_id: str) -> frozenset[str]:
        """Return the tasks that must succeed before a task can be expanded (`MappedTaskUpstreamDep`)."""
        task = self.tasks[task_id]
        if task.is_mapped:
            sources = task.expanded_by
        else:
            groups = self._mapped_groups.get(task_id)
            sources = groups[0].expanded_by if groups else frozenset()
        return sources & self.tasks.keys()

    def all_expansion_sources(self, task_id: str) -> frozenset[str]:
        """Return the tasks over whose values a task and all mapped groups around it are mapped."""
        groups = self._mapped_groups.get(task_id, ())
        sources = self.tasks[task_id].expanded_by.union(*(group.expanded_by for group in groups))
        return sources & self.tasks.keys()

    @cached_property
    def effective_leaves(self) -> frozenset[str]:
        """The tasks whose states decide the state of the run (`DagRun._tis_for_dagrun_state`)."""
        leaves = {task.task_id for task in self.tasks.values() if self._is_effective_leaf(task)}
        return frozenset(leaves) or frozenset(
            task.task_id for task in self.tasks.values() if not task.downstream_task_ids
        )

    @cached_property
    def only_leaf(self) -> str | None:
        """The result task if neither the DAG's author nor the caller names one: see `find_only_leaf`."""
        return find_only_leaf(self)

    def _is_effective_leaf(self, task: Task) -> bool:
        def is_ignored(task: Task) -> bool:
            return task.is_teardown and not task.on_failure_fail_dagrun

        return not is_ignored(task) and all(is_ignored(self.tasks[one]) for one in self.downstream(task.task_id))


def _read_dag(reader: JsonReader) -> tuple[list[Task] | None, dict[str, Any]]:
    """Return the tasks of the member `dag`, `None` without a list of them, and its other members that are used."""
    tasks: list[Task] | None = None
    members: dict[str, Any] = {}
    for name in reader.iter_keys():
        if name == "tasks":
            tasks = [_parse_operator(reader.read_value()) for _ in reader.iter_items()]
        else:
            value = reader.read_value()
            if name in _DAG_MEMBERS:
                members[name] = value
    return tasks, members


def _parse_operator(operator: object) -> Task:
    """Return the task of a serialised operator. A mapped operator has most members in `partial_kwargs`.

    Raises:
        msgspec.ValidationError: It has no task id, or its list of downstream tasks is malformed.
    """
    fields = operator.get("__var") if isinstance(operator, dict) else None
    if not isinstance(fields, dict):
        raise msgspec.ValidationError("A serialised operator must be an object with an object `__var`")
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
            "has_result_mark": _has_result_mark(fields.get("params")) or _has_result_mark(partial.get("params")),
            "has_native_mark": flag("returns_dag_result"),
            "expanded_by": list(_iter_xcom_tasks([fields.get(name) for name in _EXPAND_INPUTS])),
            "has_no_values": any(_is_empty_literal(fields.get(name)) for name in _EXPAND_INPUTS),
            "returns_nothing": flag("_is_empty")
            or fields.get(_PUSH, partial.get(_PUSH)) is False
            or fields.get("task_type") == _LOOP_GATE,
            "operator": str(fields.get("_operator_name") or fields.get("task_type") or ""),
        },
        Task,
    )


def _has_result_mark(params: object) -> bool:
    """Whether serialised params contain the result mark.

    They are a list of pairs or an object, and their values are plain values or serialised `Param`s.
    """
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
    group: object, groups: tuple[MappedGroup, ...] = ()
) -> Iterator[tuple[str, tuple[MappedGroup, ...]]]:
    """Yield each task below a group that has mapped groups around it, with those groups, innermost first."""
    children = group.get("children") if isinstance(group, dict) else None
    if not isinstance(children, dict):
        return
    for name, child in children.items():
        match child:
            case ["taskgroup", dict() as inner] if inner.get("is_mapped") is True:
                values = inner.get("expand_input")
                mapped = MappedGroup(name, frozenset(_iter_xcom_tasks(values)), _is_empty_literal(values))
                yield from _iter_mapped_groups(inner, (mapped, *groups))
            case ["taskgroup", inner]:
                yield from _iter_mapped_groups(inner, groups)
            case ["operator", str() as task_id] if groups:
                yield task_id, groups


def _is_empty_literal(expand_input: object) -> bool:
    """Whether an expand input is an empty literal (`SchedulerDictOfListsExpandInput`)."""
    match expand_input:
        case {"type": "dict-of-lists", "value": {"__var": dict() as values}}:
            return any(one == [] or (isinstance(one, dict) and one.get("__var") in ([], {})) for one in values.values())
        case {"value": []}:
            return True
    return False


def _iter_xcom_tasks(value: object) -> Iterator[str]:
    """Yield the tasks whose XComs a serialised value references (`airflow.serialization.definitions.xcom_arg`)."""
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
