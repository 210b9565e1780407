"""The task instances of a run in a snapshot: listed, or counted where there are too many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from stream_server.domain.iterations import Iterations
from stream_server.domain.task_instances import TaskInstances
from stream_server.protocol.frames import NO_STATUS, TaskInfo

MAX_LISTED_INSTANCES = 100
"""A snapshot has counts per state for a task with more instances than this, instead of thousands of rows. So many
instances of its earlier iterations are listed at most."""

MAX_LISTED_BYTES = 512 * 1024
"""About how much of a snapshot lists instances. Beyond it, the tasks with the most instances are counted, so that the
frame has less than 1 MiB: many WebSocket clients refuse larger messages."""

_LISTED_BYTES = 170
"""An instance in a snapshot as JSON, with both of its dates, without its task."""


class SnapshotTasks(NamedTuple):
    """The task instances of a run in a snapshot."""

    listed: list[TaskInfo]
    counts: dict[str, dict[str, int]]
    """Number of instances by task and state, for tasks that are not listed."""


def list_tasks(tasks: Mapping[str, TaskInstances], iterations: Iterations) -> SnapshotTasks:
    """Return the instances of all tasks in their newest iteration, each after those of earlier iterations.

    Clients that do not know iterations show the last one. Where not all earlier iterations fit, the newest are listed.
    """
    counted, size = _find_counted_tasks(tasks)
    listed: list[TaskInfo] = []
    counts: dict[str, dict[str, int]] = {}
    for task_id, instances in tasks.items():
        if task_id in counted:
            counts[task_id] = {state or NO_STATUS: len(found) for state, found in instances.by_state.items()}
            continue
        earlier: list[tuple[int, TaskInstances]] = []
        count = 0
        for iteration, found in iterations.earlier(task_id):
            count += len(found)
            size += _listed_bytes(task_id, found)
            if count > MAX_LISTED_INSTANCES or size > MAX_LISTED_BYTES:
                break
            earlier.append((iteration, found))
        for iteration, found in reversed(earlier):
            listed.extend(_iter_task_infos(task_id, found, iteration))
        listed.extend(_iter_task_infos(task_id, instances, iterations.newest(task_id)))
    return SnapshotTasks(listed, counts)


def _find_counted_tasks(tasks: Mapping[str, TaskInstances]) -> tuple[set[str], int]:
    """Return the tasks whose instances are counted: those with the most instances; and about how large the others are.

    The size is in bytes of JSON.
    """
    counted = {task_id for task_id, instances in tasks.items() if len(instances) > MAX_LISTED_INSTANCES}
    listed = tasks.keys() - counted
    size = sum(_listed_bytes(task_id, tasks[task_id]) for task_id in listed)
    if size > MAX_LISTED_BYTES:
        for task_id in sorted(listed, key=lambda task_id: (-len(tasks[task_id]), task_id)):
            size -= _listed_bytes(task_id, tasks[task_id])
            counted.add(task_id)
            if size <= MAX_LISTED_BYTES:
                break
    return counted, size


def _listed_bytes(task_id: str, instances: TaskInstances) -> int:
    """Return about how many bytes of JSON the instances of a task are in a snapshot."""
    return len(instances) * (_LISTED_BYTES + len(task_id))


def _iter_task_infos(task_id: str, instances: TaskInstances, iteration: int | None) -> Iterator[TaskInfo]:
    for map_index, instance in sorted(instances.items()):
        yield TaskInfo(
            task_id=task_id,
            map_index=map_index,
            try_number=instance.try_number,
            state=instance.state,
            start_date=instance.start_date,
            end_date=instance.end_date,
            iteration=iteration,
        )
