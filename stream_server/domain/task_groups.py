"""The task groups of a DAG, read from what Airflow serialised (`airflow.serialization`, `TaskGroupSerialization`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class TaskGroup(NamedTuple):
    """A task group that people see as such."""

    group_id: str
    parent_id: str | None
    """The group around it, if there is one."""

    is_mapped: bool
    """Whether it is run once for each of some values."""


class TaskGroups(NamedTuple):
    """Which task stands in which group. A shape that nobody knows has no groups."""

    groups: tuple[TaskGroup, ...]
    """Each before those within it."""

    group_of_task: Mapping[str, str]
    """By task, the innermost group around it; tasks outside of all groups are left out."""


NO_GROUPS = TaskGroups((), {})


def parse_task_groups(task_group: object) -> TaskGroups:
    """Read the root group of a serialised DAG."""
    groups: list[TaskGroup] = []
    places: dict[str, str] = {}
    for name, child, parent in _iter_children(task_group, None):
        if isinstance(child, dict):
            groups.append(TaskGroup(name, parent, child.get("is_mapped") is True))
        elif parent is not None:
            places[name] = parent
    return TaskGroups(tuple(groups), places)


def _iter_children(group: object, parent: str | None) -> Iterator[tuple[str, object, str | None]]:
    """Yield all that stands in a group, near or far: its name, its content if it is a group, and what it stands in."""
    children = group.get("children") if isinstance(group, dict) else None
    for name, child in children.items() if isinstance(children, dict) else ():
        match child:
            case ["taskgroup", dict() as inner]:
                yield name, inner, parent
                yield from _iter_children(inner, name)
            case ["operator", str() as task_id]:
                yield task_id, None, parent
