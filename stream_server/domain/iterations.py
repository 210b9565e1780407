"""The iterations of task loops (Airflow 3.4): a task in a loop has instances in each iteration.

Those of the newest iteration decide what follows in the run. Those of earlier ones matter to clients that show them,
and where they are cleared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from stream_server.domain.task_groups import Loop
from stream_server.domain.task_instances import TaskInstances

MAX_EARLIER_ITERATIONS = 20
"""For each task, so many iterations before the newest one are kept."""

_ENDED_STATES = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})


def is_gate_open(loop: Loop, states: Mapping[str | None, AbstractSet[int]] | None, iteration: int | None) -> bool:
    """Whether the gate of a loop has not decided yet whether another iteration follows, and may decide that.

    The transaction in which a gate succeeds also creates the instances of the next iteration
    (`DagRun.complete_loop_gate`). So a gate that has ended in its newest iteration has ended the loop.

    Args:
        loop: The loop.
        states: States of the gate in its newest iteration; `None` if it has no instance yet.
        iteration: The newest iteration of the gate, from 0.
    """
    return not states or (not _ENDED_STATES.issuperset(states) and (iteration or 0) + 1 < loop.max_iterations)


class Iterations:
    """The instances of all tasks of a run: of a task in a loop those of the newest iteration, and of some earlier ones.

    Args:
        current: By task, its instances; in a loop those of the newest iteration. Updated in place.
    """

    def __init__(self, current: dict[str, TaskInstances]) -> None:
        self._current = current
        self._newest: dict[str, int] = {}
        self._earlier: dict[str, dict[int, TaskInstances]] = {}

    def newest(self, task_id: str) -> int | None:
        """Return the newest iteration of a task; `None` outside of loops."""
        return self._newest.get(task_id)

    def is_current(self, task_id: str, iteration: int | None) -> bool:
        """Whether an iteration of a task is its newest one. Outside of loops, it is `None`."""
        return self._newest.get(task_id) == iteration

    def find(self, task_id: str, iteration: int | None) -> TaskInstances | None:
        """Return the instances of a task in an iteration; `None` if there are none, or they are not kept."""
        # A replay calls this in a thread while `open` adds an iteration. `open` keeps the instances in `_earlier`, sets
        # the newest iteration, and then replaces the instances. Read in the opposite order, they are those of the
        # iteration that was the newest one, or `_earlier` has them. A replay asks only for iterations that were added.
        current = self._current.get(task_id)
        if self.is_current(task_id, iteration):
            return current
        return None if iteration is None else self._earlier.get(task_id, {}).get(iteration)

    def open(self, task_id: str, iteration: int | None) -> TaskInstances:
        """Return the instances of a task in an iteration, to change them. A newer iteration becomes the newest one."""
        if iteration is None:
            instances = self._current.get(task_id)
            if instances is None:
                instances = self._current[task_id] = TaskInstances()
            return instances
        newest = self._newest.get(task_id)
        if newest is not None and iteration < newest:
            return self._keep(task_id, iteration, TaskInstances())
        if newest is None or iteration > newest:
            before = self._current.get(task_id)
            if newest is not None and before is not None:
                self._keep(task_id, newest, before)
            self._newest[task_id] = iteration
            self._current[task_id] = TaskInstances()
        return self._current[task_id]

    def has_earlier(self, task_id: str) -> bool:
        """Whether earlier iterations of a task are kept."""
        return task_id in self._earlier

    def earlier(self, task_id: str) -> Iterator[tuple[int, TaskInstances]]:
        """Yield the earlier iterations of a task that are kept, and its instances in them, newest first."""
        return iter(sorted(self._earlier.get(task_id, {}).items(), reverse=True))

    def _keep(self, task_id: str, iteration: int, instances: TaskInstances) -> TaskInstances:
        """Return the instances that are kept of an iteration: those given, if there were none."""
        earlier = self._earlier.setdefault(task_id, {})
        instances = earlier.setdefault(iteration, instances)
        while len(earlier) > MAX_EARLIER_ITERATIONS:
            del earlier[min(earlier)]
        return instances
