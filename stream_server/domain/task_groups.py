"""The task groups of a DAG, from Airflow's serialised form (`airflow.serialization`, `TaskGroupSerialization`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class TaskGroup(NamedTuple):
    """A task group, mapped or not."""

    group_id: str
    parent_id: str | None
    is_mapped: bool


class TaskGroups(NamedTuple):
    """All task groups of a DAG."""

    groups: tuple[TaskGroup, ...]
    """Each group comes before the groups within it."""

    group_of_task: Mapping[str, str]
    """The innermost group by task; without tasks outside all groups."""


NO_GROUPS = TaskGroups((), {})


def parse_task_groups(root: object) -> TaskGroups:
    """Return the groups within the serialised root group; none if its shape is unknown."""
    groups: list[TaskGroup] = []
    group_of_task: dict[str, str] = {}
    for name, child, parent_id in _iter_children(root, None):
        if isinstance(child, dict):
            groups.append(TaskGroup(name, parent_id, child.get("is_mapped") is True))
        elif parent_id is not None:
            group_of_task[name] = parent_id
    return TaskGroups(tuple(groups), group_of_task)


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
