"""The task instances of a run in a snapshot: listed, or counted where there are too many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


class TaskListing:
    """The task instances of a run for its snapshots. What has not changed since the last snapshot is not built again.

    Args:
        tasks: The instances in the newest iteration, which change.
        iterations: Those of earlier iterations.
    """

    def __init__(self, tasks: Mapping[str, TaskInstances], iterations: Iterations) -> None:
        self._tasks = tasks
        self._iterations = iterations
        self.changed: set[str] = set(tasks)
        """Tasks whose instances have changed since the last snapshot. The owner adds them."""

        self._lengths: dict[str, int] = {}
        self._counted: set[str] = set()
        self._size = 0
        self._infos: dict[str, Sequence[TaskInfo]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    def build(self) -> SnapshotTasks:
        """Return the instances of all tasks in their newest iteration, each after those of earlier iterations.

        Clients that do not know iterations show the last one. Where not all earlier iterations fit, the newest are
        listed.
        """
        self._forget_changed()
        listed: list[TaskInfo] = []
        counts: dict[str, dict[str, int]] = {}
        size = self._size
        for task_id in self._tasks:
            if task_id in self._counted:
                counts[task_id] = self._counts.get(task_id) or self._count(task_id)
                continue
            if self._iterations.has_earlier(task_id):
                earlier, size = self._list_earlier(task_id, size)
                listed += earlier
            listed += self._infos.get(task_id) or self._list(task_id)
        return SnapshotTasks(listed, counts)

    def _forget_changed(self) -> None:
        is_resized = False
        for task_id in self.changed:
            self._infos.pop(task_id, None)
            self._counts.pop(task_id, None)
            length = len(self._tasks[task_id])
            if self._lengths.get(task_id) != length:
                self._lengths[task_id] = length
                is_resized = True
        self.changed.clear()
        if is_resized:
            self._counted, self._size = _find_counted_tasks(self._lengths)

    def _count(self, task_id: str) -> dict[str, int]:
        by_state = self._tasks[task_id].by_state.items()
        counts = self._counts[task_id] = {state or NO_STATUS: len(found) for state, found in by_state}
        return counts

    def _list(self, task_id: str) -> Sequence[TaskInfo]:
        found = _iter_task_infos(task_id, self._tasks[task_id], self._iterations.newest(task_id))
        infos = self._infos[task_id] = tuple(found)
        return infos

    def _list_earlier(self, task_id: str, size: int) -> tuple[Sequence[TaskInfo], int]:
        """Return the instances of the earlier iterations that fit, and about how large all are that are listed."""
        earlier: list[tuple[int, TaskInstances]] = []
        count = 0
        for iteration, found in self._iterations.earlier(task_id):
            count += len(found)
            size += _listed_bytes(task_id, len(found))
            if count > MAX_LISTED_INSTANCES or size > MAX_LISTED_BYTES:
                break
            earlier.append((iteration, found))
        infos = [info for iteration, found in reversed(earlier) for info in _iter_task_infos(task_id, found, iteration)]
        return infos, size


def _find_counted_tasks(lengths: Mapping[str, int]) -> tuple[set[str], int]:
    """Return the tasks whose instances are counted: those with the most instances; and about how large the others are.

    The size is in bytes of JSON.

    Args:
        lengths: Number of instances by task.
    """
    counted = {task_id for task_id, length in lengths.items() if length > MAX_LISTED_INSTANCES}
    sizes = {
        task_id: _listed_bytes(task_id, length) for task_id, length in lengths.items() if length <= MAX_LISTED_INSTANCES
    }
    size = sum(sizes.values())
    if size > MAX_LISTED_BYTES:
        for task_id in sorted(sizes, key=lambda task_id: (-lengths[task_id], task_id)):
            size -= sizes[task_id]
            counted.add(task_id)
            if size <= MAX_LISTED_BYTES:
                break
    return counted, size


def _listed_bytes(task_id: str, length: int) -> int:
    """Return about how many bytes of JSON some instances of a task are in a snapshot."""
    return length * (_LISTED_BYTES + len(task_id))


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
