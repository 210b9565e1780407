"""The instances of one task of a run, and which of them have a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import NamedTuple


class SourceRow(NamedTuple):
    """Journal row of a change; empty if the change is older than the stream."""

    seq: int | None = None
    at: datetime | None = None


class TaskInstance(NamedTuple):
    """A task instance in its current try."""

    state: str | None
    try_number: int
    start_date: datetime | None = None
    end_date: datetime | None = None
    changed: SourceRow = SourceRow()
    """The last change of its state."""

    pushed: SourceRow | None = None
    """Push of its return value; `None` if this try has not pushed one."""

    has_value: bool = False
    """Whether its return value is in the database, also if it does not count: a try that has been killed may still push
    one, and a person may mark the task as a success afterwards."""

    mark: bool | None = None
    """Whether its return value in the database bears Airflow 3.3's own result mark; `None` if there is no value, or an
    older Airflow wrote it. Airflow deletes the value of an earlier try only when the next one runs."""


class TaskInstances(Mapping[int, TaskInstance]):
    """The instances of one task by `map_index`.

    Sums are kept up to date with each change, because a mapped task can have thousands of instances.
    """

    def __init__(self) -> None:
        self._instances: dict[int, TaskInstance] = {}
        self._by_state: dict[str | None, set[int]] = {}
        self._last_result_sources: dict[bool, tuple[int, SourceRow]] = {}
        self.indexes_with_result: set[int] = set()
        """Running instances that have pushed, and successful ones."""

        self.result_changes = 0
        """Counts the changes of the task's result."""

        self.tries = 0
        """Sum of all `try_number`s."""

        # How many instances show that the task is not marked, and that it is: indexed by the mark.
        self._marks = [0, 0]

    def __getitem__(self, map_index: int) -> TaskInstance:
        return self._instances[map_index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._instances)

    def __len__(self) -> int:
        return len(self._instances)

    @property
    def by_state(self) -> Mapping[str | None, AbstractSet[int]]:
        """Indexes by state. States without an instance are left out."""
        return self._by_state

    @property
    def mark(self) -> bool | None:
        """Whether the task bears Airflow 3.3's own result mark; `None` if no return value of a current try shows it."""
        unmarked, marked = self._marks
        return bool(marked) if marked or unmarked else None

    def put(self, map_index: int, instance: TaskInstance) -> None:
        """Add or replace an instance."""
        before = self._instances.get(map_index)
        self._instances[map_index] = instance
        if before is None or before.state != instance.state:
            self._remove_from_state(map_index, before)
            self._by_state.setdefault(instance.state, set()).add(map_index)
        self.tries += instance.try_number - (before.try_number if before else 0)
        self._track_result(map_index, before, instance)
        self._count_marks(before, instance)

    def remove(self, map_index: int) -> None:
        """Remove an instance, if it exists."""
        before = self._instances.pop(map_index, None)
        if before is not None:
            self._remove_from_state(map_index, before)
            self.tries -= before.try_number
            self._track_result(map_index, before, None)
            self._count_marks(before, None)

    def last_result_source(self, needs_success: bool) -> SourceRow:
        """Return the row of the last result, or of the last success if `needs_success`."""
        count, source = self._last_result_sources.get(needs_success, (None, SourceRow()))
        if count != self.result_changes:
            ones = [self._instances[one] for one in self.indexes_with_result]
            sources = [one.changed if needs_success else _result_source(one) or one.changed for one in ones]
            source = max(sources, key=lambda row: row.seq or 0, default=SourceRow())
            self._last_result_sources[needs_success] = self.result_changes, source
        return source

    def _remove_from_state(self, map_index: int, before: TaskInstance | None) -> None:
        if before is not None:
            indexes = self._by_state[before.state]
            indexes.discard(map_index)
            if not indexes:
                del self._by_state[before.state]

    def _track_result(self, map_index: int, before: TaskInstance | None, after: TaskInstance | None) -> None:
        old, new = _result_source(before), _result_source(after)
        if new is None:
            self.indexes_with_result.discard(map_index)
        else:
            self.indexes_with_result.add(map_index)
        is_new_try = before and after and before.try_number != after.try_number
        if old != new or (new is not None and is_new_try):
            self.result_changes += 1

    def _count_marks(self, before: TaskInstance | None, after: TaskInstance | None) -> None:
        for instance, change in ((before, -1), (after, 1)):
            if instance is not None and instance.mark is not None and _shows_mark(instance):
                self._marks[instance.mark] += change


def _result_source(instance: TaskInstance | None) -> SourceRow | None:
    """Return the row that the result of an instance comes from, or `None` if it has no result."""
    if instance is None:
        return None
    if instance.state == "running":
        return instance.pushed
    if instance.state == "success":
        # A task that returns `None` pushes nothing: its success is the result.
        return instance.pushed or instance.changed
    return None


def _shows_mark(instance: TaskInstance) -> bool:
    return instance.state == "success" or (instance.state == "running" and instance.pushed is not None)
