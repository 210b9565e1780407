"""The task groups of a DAG, from Airflow's serialised form (`airflow.serialization`, `TaskGroupSerialization`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class TaskGroup(NamedTuple):
    """A task group, mapped or not."""

    group_id: str
    parent_id: str | None
    is_mapped: bool


class Loop(NamedTuple):
    """A task group that Airflow 3.4 repeats (`SerializedLoopTaskGroup`). Loops are not nested."""

    group_id: str
    gate_task_id: str
    """The task in the loop that decides whether another iteration follows. All others in the loop end before it."""

    max_iterations: int


class TaskGroups(NamedTuple):
    """All task groups of a DAG."""

    groups: tuple[TaskGroup, ...]
    """Each group comes before the groups within it."""

    group_of_task: Mapping[str, str]
    """The innermost group by task; without tasks outside all groups."""

    loop_of_task: Mapping[str, Loop] = {}
    """The loop around a task; without tasks outside of loops."""


NO_GROUPS = TaskGroups((), {})


def parse_task_groups(root: object) -> TaskGroups:
    """Return the groups within the serialised root group; none if its shape is unknown."""
    groups: list[TaskGroup] = []
    group_of_task: dict[str, str] = {}
    loops: dict[str, Loop] = {}
    """By group, the loop that it is, or is in."""

    for name, child, parent_id in _iter_children(root, None):
        if isinstance(child, dict):
            groups.append(TaskGroup(name, parent_id, child.get("is_mapped") is True))
            loop = _parse_loop(name, child.get("loop")) or loops.get(parent_id or "")
            if loop is not None:
                loops[name] = loop
        elif parent_id is not None:
            group_of_task[name] = parent_id
    loop_of_task = {task_id: loops[group_id] for task_id, group_id in group_of_task.items() if group_id in loops}
    return TaskGroups(tuple(groups), group_of_task, loop_of_task)


def _parse_loop(group_id: str, loop: object) -> Loop | None:
    match loop:
        case {"gate_task_id": str() as gate, "max_iterations": int() as most}:
            return Loop(group_id, gate, most)
    return None


def _iter_children(group: object, group_id: str | None) -> Iterator[tuple[str, object, str | None]]:
    """Yield all groups and tasks below a group: name, content (`None` for a task) and the group around it."""
    children = group.get("children") if isinstance(group, dict) else None
    for name, child in children.items() if isinstance(children, dict) else ():
        match child:
            case ["taskgroup", dict() as inner]:
                yield name, inner, group_id
                yield from _iter_children(inner, name)
            case ["operator", str() as task_id]:
                yield task_id, None, group_id
