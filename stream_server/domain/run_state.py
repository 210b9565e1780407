"""What is known of one DAG run: a snapshot of Airflow's tables, kept current by the journal.

Pure. Reading a run from the database gives the same state as following it from its first row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Literal, NamedTuple

from stream_server.domain.graph import Graph
from stream_server.domain.prediction import Prediction, is_predictable
from stream_server.domain.task_output import RunOutput
from stream_server.domain.transition import RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import is_output, output_frames, run_frame, task_frame
from stream_server.protocol.frames import NO_STATUS, AnyFrame, AnyOutputFrame, RunInfo, Snapshot, TaskInfo

MAX_OUTPUT_BYTES = 1024 * 1024
"""Bytes of what the tasks of a run have said that are kept by default."""

MAX_LISTED_INSTANCES = 100
"""A task with more instances is told as counts per state: thousands of rows are no help to anybody."""

FINAL_RUN_STATES = frozenset({"success", "failed"})
"""States in which a run has ended (`airflow.utils.state.State.finished_dr_states`)."""

_PUSHING_STATES = frozenset({"running", "success"})

RETRACTING_STATES = frozenset({None, "restarting", "up_for_retry"})
"""States into which a task instance comes that will be tried again: what it has said is worth nothing any more."""

_PUSH_KEEPING_STATES = frozenset({"running", "deferred", "awaiting_input", "scheduled", "queued", "success"})
"""States through which a try may go without losing its XComs; a deferred one is scheduled and runs again."""


RetractionReason = Literal["retried", "cleared"]
"""Why what a task has said is worth nothing any more."""


class RunKey(NamedTuple):
    """What names a run; Airflow's `UNIQUE (dag_id, run_id)`."""

    dag_id: str
    run_id: str


class SourceRow(NamedTuple):
    """Journal row that something became known by; empty where it was known before the stream began."""

    seq: int | None = None
    at: datetime | None = None


class TaskInstance(NamedTuple):
    """A task instance in its current try."""

    state: str | None
    try_number: int
    start_date: datetime | None = None
    end_date: datetime | None = None
    changed: SourceRow = SourceRow()
    pushed: SourceRow | None = None
    """By what its return value became known; `None` while this try has pushed none."""

    mark: bool | None = None
    """Whether its return value in the database bears Airflow 3.3's own result mark; `None` if there is no value, or an
    older Airflow wrote it. Airflow deletes the value of an earlier try only when the next one runs."""


class TaskInstances(Mapping[int, TaskInstance]):
    """The instances of one task by `map_index`, and sums of them, so that nobody has to go through thousands."""

    def __init__(self) -> None:
        self._instances: dict[int, TaskInstance] = {}
        self._by_state: dict[str | None, set[int]] = {}
        self._last_result_sources: dict[bool, tuple[int, SourceRow]] = {}
        self.indexes_with_result: set[int] = set()
        """Indexes of those that have answered: running ones that have pushed, and successful ones."""

        self.result_changes = 0
        """Counts whatever changes the answer of the task."""

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
        """Indexes by state; no state without any."""
        return self._by_state

    @property
    def mark(self) -> bool | None:
        """Whether the task bears Airflow 3.3's own result mark; `None` if no return value of a current try shows it."""
        unmarked, marked = self._marks
        return bool(marked) if marked or unmarked else None

    def put(self, map_index: int, instance: TaskInstance) -> None:
        """Add an instance, or replace one."""
        before = self._instances.get(map_index)
        self._instances[map_index] = instance
        if before is None or before.state != instance.state:
            self._remove_from_state(map_index, before)
            self._by_state.setdefault(instance.state, set()).add(map_index)
        self.tries += instance.try_number - (before.try_number if before else 0)
        self._track_result(map_index, before, instance)
        self._count_marks(before, instance)

    def remove(self, map_index: int) -> None:
        """Forget an instance, if there is one."""
        before = self._instances.pop(map_index, None)
        if before is not None:
            self._remove_from_state(map_index, before)
            self.tries -= before.try_number
            self._track_result(map_index, before, None)
            self._count_marks(before, None)

    def count_expected(self) -> int:
        """Return how many instances must answer: indexes beyond a shrunk mapping are removed, and missed by nobody."""
        return len(self._instances) - len(self._by_state.get("removed", ()))

    def has_all_results(self, confirmed: bool) -> bool:
        """Whether all have answered that must; where that is to be confirmed, by their success."""
        return (
            0
            < self.count_expected()
            == len(self._by_state.get("success", ()) if confirmed else self.indexes_with_result)
        )

    def last_result_source(self, confirmed: bool) -> SourceRow:
        """Return by what the last of the answers became known, or its confirmation."""
        count, origin = self._last_result_sources.get(confirmed, (None, SourceRow()))
        if count != self.result_changes:
            ones = [self._instances[one] for one in self.indexes_with_result]
            origins = [one.changed if confirmed else _result_source(one) or one.changed for one in ones]
            origin = max(origins, key=lambda origin: origin.seq or 0, default=SourceRow())
            self._last_result_sources[confirmed] = self.result_changes, origin
        return origin

    def _remove_from_state(self, map_index: int, before: TaskInstance | None) -> None:
        if before is not None:
            left = self._by_state[before.state]
            left.discard(map_index)
            if not left:
                del self._by_state[before.state]

    def _track_result(self, map_index: int, before: TaskInstance | None, after: TaskInstance | None) -> None:
        old, new = _result_source(before), _result_source(after)
        if new is None:
            self.indexes_with_result.discard(map_index)
        else:
            self.indexes_with_result.add(map_index)
        tried_again = before and after and before.try_number != after.try_number
        if old != new or (new is not None and tried_again):
            self.result_changes += 1

    def _count_marks(self, before: TaskInstance | None, after: TaskInstance | None) -> None:
        for instance, change in ((before, -1), (after, 1)):
            if instance is not None and instance.mark is not None and _shows_mark(instance):
                self._marks[instance.mark] += change


def _result_source(instance: TaskInstance | None) -> SourceRow | None:
    """Return by what an instance has answered, or `None` if it has not."""
    if instance is None:
        return None
    if instance.state == "running":
        return instance.pushed
    if instance.state == "success":
        # A task that returned `None` pushes nothing: its success is the answer.
        return instance.pushed or instance.changed
    return None


def _shows_mark(instance: TaskInstance) -> bool:
    return instance.state == "success" or (instance.state == "running" and instance.pushed is not None)


class RunState:
    """The state of a run, and what follows from each transition."""

    def __init__(
        self, key: RunKey, run: RunInfo, graph: Graph | None = None, *, output_bytes: int = MAX_OUTPUT_BYTES
    ) -> None:
        self.key = key
        self.info = run
        self.graph = graph
        """Structure of the DAG as this run sees it; `None` where Airflow kept none."""

        self.tasks: dict[str, TaskInstances] = {}
        """Instances by task and `map_index`."""

        self.native_marks: dict[str, bool] = {}
        """By task, whether its return value in this run bears Airflow 3.3's own result mark. A task without a return
        value is missing."""

        self.earlier_marks: Mapping[str, bool] | None = None
        """The same, from runs of the same DAG version that have ended. A task is missing if it succeeded in none of
        them; `None` if there is no such run."""

        self.output = RunOutput(output_bytes)
        """What tasks have said."""

        self._retraction: RetractionReason | None = None
        self._prediction: Prediction | None = None

        self.changed = SourceRow()
        self.is_deleted = False

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, as far as Airflow knows."""
        return self.is_deleted or self.info.state in FINAL_RUN_STATES

    def is_expanded_to_nothing(self, task_id: str) -> bool:
        """Tell whether a task is run for each of some values, and there are none: its answer is an empty list.

        Airflow skips its only instance then, and unlike everything else that skips one, it does not note when
        (`TaskMap.expand_mapped_task`).
        """
        instances = self.tasks.get(task_id)
        alone = instances.get(-1) if instances is not None and len(instances) == 1 else None
        if alone is None or alone.state != "skipped" or alone.end_date is not None:
            return False
        return self.graph is not None and task_id in self.graph.tasks and self.graph.may_expand(task_id)

    @property
    def task_ids(self) -> set[str]:
        """The tasks of the DAG."""
        return self.tasks.keys() | (self.graph.tasks.keys() if self.graph is not None else set())

    def add_instance(self, task_id: str, map_index: int, instance: TaskInstance) -> None:
        """Put in what the database says of one task instance."""
        self._put(task_id, map_index, instance)
        self._prediction = None

    def apply(self, transition: Transition) -> Sequence[AnyFrame]:
        """Follow one transition.

        Returns:
            The frames that tell it: none for what is no change of a state, and was not said in a try that stands.
        """
        if transition.kind is TransitionKind.TASK:
            self._prediction = None
            self._apply_task(transition)
            return [task_frame(transition)]
        if transition.kind is TransitionKind.RUN:
            self._apply_run(transition)
            return [run_frame(transition)]
        if is_output(transition):
            return self._apply_output(transition)
        if transition.kind is TransitionKind.XCOM:
            self._apply_xcom(transition)
        elif transition.kind is TransitionKind.RUN_DELETED:
            self.is_deleted = True
            self.changed = SourceRow(transition.seq, transition.at)
        return ()

    def is_current(self, said: AnyOutputFrame) -> bool:
        """Tell whether what a task has said is worth something: its try is the current one, and will not be repeated.

        The Execution API accepts XComs of tries that have been killed.
        """
        instances = self.tasks.get(said.task_id)
        instance = instances.get(said.map_index) if instances is not None else None
        return (
            instance is not None and instance.try_number == said.try_number and instance.state not in RETRACTING_STATES
        )

    def take_retraction(self) -> RetractionReason | None:
        """Return why something that was said is worth nothing any more, since this was called last."""
        unsaid, self._retraction = self._retraction, None
        return unsaid

    def discard_push(self, task_id: str, map_index: int) -> None:
        """Take back a return value that is not in the database any more."""
        self._put(task_id, map_index, self.tasks[task_id][map_index]._replace(pushed=None, mark=None))

    def predict(self) -> Prediction | None:
        """Tell how the task instances can end, or `None` where that is nothing but what their states say."""
        if self._prediction is None and self.graph is not None:
            states = {task_id: instances.by_state for task_id, instances in self.tasks.items()}
            if is_predictable(self.graph, states):
                self._prediction = Prediction(self.graph, states)
        return self._prediction

    def snapshot(self, result_tasks: tuple[str, ...]) -> Snapshot:
        """Tell all that is known."""
        listed: list[TaskInfo] = []
        counts: dict[str, dict[str, int]] = {}
        for task_id, instances in self.tasks.items():
            if len(instances) > MAX_LISTED_INSTANCES:
                counts[task_id] = {state or NO_STATUS: len(found) for state, found in instances.by_state.items()}
            else:
                listed.extend(_iter_task_infos(task_id, instances))
        return Snapshot(
            dag_id=self.key.dag_id,
            run_id=self.key.run_id,
            run=self.info,
            tasks=listed,
            result_tasks=list(result_tasks),
            counts=counts,
        )

    def _put(self, task_id: str, map_index: int, instance: TaskInstance) -> None:
        instances = self.tasks.setdefault(task_id, TaskInstances())
        instances.put(map_index, instance)
        mark = instances.mark
        if mark is not None:
            self.native_marks[task_id] = mark
        else:
            self.native_marks.pop(task_id, None)

    def _apply_task(self, transition: Transition) -> None:
        assert transition.task_id is not None, "the journal names the task of every task transition"
        assert transition.map_index is not None, "task_instance.map_index is NOT NULL"
        instances = self.tasks.setdefault(transition.task_id, TaskInstances())
        if transition.map_index >= 0:
            instances.remove(-1)
        before = instances.get(transition.map_index)
        pushed = before.pushed if before and _is_push_kept(before, transition) else None
        deleted = transition.state == "running" and pushed is None
        instance = TaskInstance(
            state=transition.state,
            try_number=transition.try_number or 0,
            start_date=transition.start_date,
            end_date=transition.end_date,
            changed=SourceRow(transition.seq, transition.at),
            pushed=pushed,
            mark=before.mark if before and not deleted else None,
        )
        self._put(transition.task_id, transition.map_index, instance)
        place = transition.task_id, transition.map_index
        said_in = self.output.get_try_number(place)
        if said_in is not None and (said_in != instance.try_number or instance.state in RETRACTING_STATES):
            self.output.retract(place)
            self._retraction = "retried" if transition.state == "up_for_retry" else "cleared"

    def _apply_run(self, transition: Transition) -> None:
        self.info = RunInfo(
            state=transition.state,
            queued_at=transition.queued_at,
            start_date=transition.start_date,
            end_date=transition.end_date,
            clear_number=transition.clear_number or 0,
        )
        self.changed = SourceRow(transition.seq, transition.at)

    def _apply_output(self, transition: Transition) -> Sequence[AnyFrame]:
        frames = output_frames(transition)
        if not frames or not self.is_current(frames[0]):
            return ()
        news, takes_back = self.output.add_frames(frames, hash(transition.body))
        if takes_back:
            self._retraction = "retried"
        return news

    def _apply_xcom(self, transition: Transition) -> None:
        if transition.xcom_key != RETURN_VALUE_KEY:
            return
        assert transition.task_id is not None, "an XCom belongs to a task"
        assert transition.map_index is not None, "xcom.map_index is NOT NULL"
        instances = self.tasks.get(transition.task_id)
        instance = instances.get(transition.map_index) if instances is not None else None
        if instance is None:
            return
        instance = instance._replace(mark=transition.dag_result)
        # The Execution API accepts XComs of tasks that have been killed; they are no answer any more.
        if instance.state in _PUSHING_STATES:
            instance = instance._replace(pushed=SourceRow(transition.seq, transition.at))
        self._put(transition.task_id, transition.map_index, instance)


def _is_push_kept(before: TaskInstance, transition: Transition) -> bool:
    return transition.state in _PUSH_KEEPING_STATES and transition.try_number == before.try_number


def _iter_task_infos(task_id: str, instances: TaskInstances) -> Iterator[TaskInfo]:
    for map_index, instance in sorted(instances.items()):
        yield TaskInfo(
            task_id=task_id,
            map_index=map_index,
            try_number=instance.try_number,
            state=instance.state,
            start_date=instance.start_date,
            end_date=instance.end_date,
        )
