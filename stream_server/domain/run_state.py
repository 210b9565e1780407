"""The state of one DAG run: a snapshot of Airflow's tables, updated with the transitions of the journal.

Reading a run from the database gives the same state as applying all its transitions from the first one on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple

from typing_extensions import override

from stream_server.domain.emitted_output import RunOutput
from stream_server.domain.graph import Graph
from stream_server.domain.human_input import RunRequests
from stream_server.domain.iterations import Iterations
from stream_server.domain.prediction import UNSUCCESSFUL_STATES, Prediction
from stream_server.domain.snapshot_tasks import TaskListing
from stream_server.domain.task_instances import SourceRow, TaskInstance, TaskInstances
from stream_server.domain.transition import RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import is_output, output_frames, run_frame, task_frame
from stream_server.protocol.frames import AnyFrame, RunInfo, Snapshot, Waiting
from stream_server.protocol.output_frames import AnyOutputFrame

MAX_OUTPUT_BYTES = 1024 * 1024
"""Default for how much output of a run is kept, in bytes."""

MAX_LATE_JUDGEMENTS = 500
"""In DAGs with more tasks, a prediction is made when a run is loaded, before anything has failed: when something does,
it would take too long."""

FINAL_RUN_STATES = frozenset({"success", "failed"})
"""States in which a run has ended (`airflow.utils.state.State.finished_dr_states`)."""

_PUSHING_STATES = frozenset({"running", "success"})

_PROCEEDING_STATES = frozenset({"queued", "running", "restarting", "deferred", "awaiting_input"})
"""States of a task instance that proceeds, or waits for something outside Airflow, also while its DAG is paused."""

RETRACTING_STATES = frozenset({None, "restarting", "up_for_retry"})
"""States of a task instance that will start a new try. They retract its output."""

_PUSH_KEEPING_STATES = frozenset({"running", "deferred", "awaiting_input", "scheduled", "queued", "success"})
"""States that a try may go through without losing its XComs. A deferred try is scheduled and runs again."""

RetractionReason = Literal["retried", "cleared"]
"""Why output of a task is no longer valid."""


class RunKey(NamedTuple):
    """Identifies a run; Airflow's `UNIQUE (dag_id, run_id)`."""

    dag_id: str
    run_id: str


class RunState:
    """The state of a run, and the frames of each transition."""

    def __init__(
        self,
        key: RunKey,
        info: RunInfo,
        graph: Graph | None = None,
        *,
        output_bytes: int = MAX_OUTPUT_BYTES,
        is_replay: bool = False,
    ) -> None:
        self.key = key
        self.info = info
        self.graph = graph
        """Structure of the DAG version of this run; `None` if Airflow has not stored it."""

        self.tasks: dict[str, TaskInstances] = {}
        """The instances of each task; of a task in a loop those of its newest iteration."""

        self.iterations = Iterations(self.tasks)
        self.native_marks: dict[str, bool] = {}
        """By task, whether its return value in this run bears Airflow 3.3's own result mark. A task without a return
        value is missing."""

        self.earlier_marks: Mapping[str, bool] | None = None
        """The same, from runs of the same DAG version that have ended. A task is missing if it succeeded in none of
        them; `None` if there is no such run."""

        self.output = RunOutput(output_bytes)
        self.requests = RunRequests(sends_unknown=not is_replay)
        self._retraction: RetractionReason | None = None
        self._prediction: Prediction | None = None
        """Kept up to date from its first use on, as the judgement of a whole DAG can take milliseconds."""

        self._changed_tasks: set[str] = set()
        """Tasks whose instances have changed since the prediction was updated."""

        self._listing: TaskListing | None = None
        """Kept for a large run, of which a snapshot would take too long otherwise."""

        self._expansions: dict[str, int] = {}
        """By task, the transaction that has expanded it. Its rows may come in several batches."""

        self._unsuccessful_tasks: set[str] = set()
        """Tasks that have an instance in one of `UNSUCCESSFUL_STATES`."""

        self.decisions: dict[object, Any] = {}
        """What `outcome.evaluate` has found since the last change, for a large run."""

        self.awaited_task: str | None = None
        """A result task that had no answer when `outcome.evaluate` looked last."""

        self.last_change = SourceRow()
        """The last change of the run itself."""

        self.waiting: Waiting | None = None
        """Why the run does not proceed, if that is known."""

        self.is_deleted = False
        self.is_outdated = False
        """Whether the run must be read again: its structure has changed, or instances were deleted."""

    @classmethod
    def deleted(cls, key: RunKey) -> RunState:
        """Return the state of a run that is not in the database any more."""
        run = cls(key, RunInfo(state=None, queued_at=None, start_date=None, end_date=None, clear_number=0))
        run.is_deleted = True
        return run

    @property
    def has_ended(self) -> bool:
        return self.is_deleted or self.info.state in FINAL_RUN_STATES

    @property
    def is_large(self) -> bool:
        """Whether an evaluation of all tasks takes milliseconds."""
        return len(self.tasks) > MAX_LATE_JUDGEMENTS or (
            self.graph is not None and len(self.graph.tasks) > MAX_LATE_JUDGEMENTS
        )

    @property
    def has_unsuccessful_tasks(self) -> bool:
        """Whether any instance is in one of `UNSUCCESSFUL_STATES`."""
        return bool(self._unsuccessful_tasks)

    @property
    def is_at_rest(self) -> bool:
        """Whether the next step is up to the scheduler."""
        return not self.has_ended and all(
            _PROCEEDING_STATES.isdisjoint(instances.by_state) for instances in self.tasks.values()
        )

    @property
    def task_ids(self) -> set[str]:
        """The tasks of the DAG."""
        return self.tasks.keys() | (self.graph.tasks.keys() if self.graph is not None else set())

    def add_instance(self, task_id: str, map_index: int, instance: TaskInstance, iteration: int | None = None) -> None:
        """Add a task instance from the database."""
        self._put(task_id, map_index, instance, iteration)

    def apply(self, transition: Transition) -> Sequence[AnyFrame]:
        """Apply a transition.

        Returns:
            Its frames; none for an XCom that is not output of the current try, and none for a deletion.
        """
        if self.is_outdated_by(transition):
            self.is_outdated = True
        if transition.kind is TransitionKind.TASK:
            self.waiting = None
            self._apply_task(transition)
            return [task_frame(transition)]
        if transition.kind is TransitionKind.RUN:
            self.waiting = None
            self._apply_run(transition)
            return [run_frame(transition)]
        if transition.kind is TransitionKind.INPUT:
            return self.requests.apply(transition)
        if is_output(transition):
            return self._apply_output(transition)
        if transition.kind is TransitionKind.XCOM:
            self._apply_xcom(transition)
        elif transition.kind is TransitionKind.RUN_DELETED:
            self.is_deleted = True
            self.decisions.clear()
            self.last_change = SourceRow(transition.seq, transition.at)
        return ()

    def is_outdated_by(self, transition: Transition) -> bool:
        """Whether the run must be read again after a transition.

        When Airflow takes up another DAG version, it adds the instances that the run lacks, of new tasks and of others
        (`DagRun.verify_integrity`). No other row shows the version if nothing else is scheduled.
        """
        if transition.kind is TransitionKind.TASK:
            return self.graph is not None and self._is_added(transition)
        return transition.kind is TransitionKind.RUN_CHANGED

    def _is_added(self, transition: Transition) -> bool:
        """Whether an instance is new in the run, and does not come from the expansion of a mapped task."""
        assert transition.task_id is not None, "the journal names the task of every task transition"
        instances = self.tasks.get(transition.task_id)
        if instances is None:
            return True
        if transition.map_index in instances or -1 in instances:
            return False
        return self._expansions.get(transition.task_id) != transition.txid

    def is_current(self, frame: AnyOutputFrame) -> bool:
        """Whether output belongs to the current try of its task instance, and that try will not be repeated.

        The Execution API also accepts XComs of tries that have been killed.
        """
        instances = self.iterations.find(frame.task_id, frame.iteration)
        instance = instances.get(frame.map_index) if instances is not None else None
        if instance is None or instance.state in RETRACTING_STATES:
            return False
        return instance.try_number == frame.try_number

    def take_retraction(self) -> RetractionReason | None:
        """Return why output was retracted since the last call; `None` if none was."""
        retraction, self._retraction = self._retraction, None
        return retraction

    def discard_push(self, task_id: str, map_index: int) -> None:
        """Discard a return value that is no longer in the database."""
        instance = self.tasks[task_id][map_index]._replace(pushed=None, has_value=False, mark=None)
        self._put(task_id, map_index, instance, self.iterations.newest(task_id))

    def predict(self) -> Prediction | None:
        """Return how the task instances can end; `None` if nothing can be predicted beyond their states."""
        if self.graph is None:
            return None
        self.advance_prediction()
        is_predictable = bool(self._unsuccessful_tasks) or self.graph.may_skip_on_success
        return self._prediction if is_predictable else None

    def advance_prediction(self, at_most: int | None = None) -> bool:
        """Bring the prediction closer to the states. Return whether it is up to date.

        Args:
            at_most: How many tasks to judge, beside those of a prediction that begins; `None` for all.
        """
        if self.graph is None:
            return True
        if not (self.is_large or self._unsuccessful_tasks or self.graph.may_skip_on_success):
            return True
        if self._prediction is None or self._prediction.graph is not self.graph:
            self._prediction = Prediction(self.graph, _StatesByTask(self.tasks), self.iterations.newest)
        elif self._changed_tasks:
            self._prediction.add_changes(self._changed_tasks)
        self._changed_tasks.clear()
        return self._prediction.advance(at_most)

    def snapshot(self, result_tasks: tuple[str, ...]) -> Snapshot:
        """Return the frame with the whole state."""
        listing = self._listing or TaskListing(self.tasks, self.iterations)
        if self.is_large:
            self._listing = listing
        tasks = listing.build()
        return Snapshot(
            dag_id=self.key.dag_id,
            run_id=self.key.run_id,
            run=self.info,
            tasks=tasks.listed,
            result_tasks=list(result_tasks),
            counts=tasks.counts,
        )

    def _put(self, task_id: str, map_index: int, instance: TaskInstance, iteration: int | None) -> None:
        self.decisions.clear()
        instances = self.iterations.open(task_id, iteration)
        instances.put(map_index, instance)
        if not self.iterations.is_current(task_id, iteration):
            return
        self._track_states(task_id, instances)
        mark = instances.mark
        if mark is not None:
            self.native_marks[task_id] = mark
        else:
            self.native_marks.pop(task_id, None)

    def _track_states(self, task_id: str, instances: TaskInstances) -> None:
        self._changed_tasks.add(task_id)
        if self._listing is not None:
            self._listing.changed.add(task_id)
        if UNSUCCESSFUL_STATES.isdisjoint(instances.by_state):
            self._unsuccessful_tasks.discard(task_id)
        else:
            self._unsuccessful_tasks.add(task_id)

    def _apply_task(self, transition: Transition) -> None:
        assert transition.task_id is not None, "the journal names the task of every task transition"
        assert transition.map_index is not None, "task_instance.map_index is NOT NULL"
        instances = self.iterations.open(transition.task_id, transition.iteration)
        if transition.map_index >= 0:
            # Expansion replaces the instance with index -1.
            if -1 in instances:
                self._expansions[transition.task_id] = transition.txid
            instances.remove(-1)
        before = instances.get(transition.map_index)
        changed = SourceRow(transition.seq, transition.at)
        pushed = before.pushed if before and _is_push_kept(before, transition) else None
        if pushed is None and before and before.has_value and _is_marked_success(before, transition):
            pushed = changed
        is_value_kept = before is not None and (transition.state != "running" or pushed is not None)
        instance = TaskInstance(
            state=transition.state,
            try_number=transition.try_number or 0,
            start_date=transition.start_date,
            end_date=transition.end_date,
            changed=changed,
            pushed=pushed,
            has_value=before.has_value if before and is_value_kept else False,
            mark=before.mark if before and is_value_kept else None,
        )
        self._put(transition.task_id, transition.map_index, instance, transition.iteration)
        key = transition.task_id, transition.map_index, transition.iteration
        self.requests.update_instance(
            key, instance.state, instance.try_number, is_given_up=instance.state in RETRACTING_STATES
        )
        output_try = self.output.get_try_number(key)
        if output_try is not None and (output_try != instance.try_number or instance.state in RETRACTING_STATES):
            self.output.retract(key)
            self._retraction = "retried" if transition.state == "up_for_retry" else "cleared"

    def _apply_run(self, transition: Transition) -> None:
        self.decisions.clear()
        self.info = RunInfo(
            state=transition.state,
            queued_at=transition.queued_at,
            start_date=transition.start_date,
            end_date=transition.end_date,
            clear_number=transition.clear_number or 0,
        )
        self.last_change = SourceRow(transition.seq, transition.at)

    def _apply_output(self, transition: Transition) -> Sequence[AnyFrame]:
        frames = output_frames(transition)
        if not frames or not self.is_current(frames[0]):
            return ()
        new, retracts = self.output.add_frames(frames, hash(transition.body))
        if retracts:
            self._retraction = "retried"
        return new

    def _apply_xcom(self, transition: Transition) -> None:
        if transition.xcom_key != RETURN_VALUE_KEY:
            return
        assert transition.task_id is not None, "an XCom belongs to a task"
        assert transition.map_index is not None, "xcom.map_index is NOT NULL"
        instances = self.iterations.find(transition.task_id, transition.iteration)
        instance = instances.get(transition.map_index) if instances is not None else None
        if instance is None:
            return
        instance = instance._replace(has_value=True, mark=transition.dag_result)
        # The Execution API also accepts XComs of tasks that have been killed; they are not a result.
        if instance.state in _PUSHING_STATES:
            instance = instance._replace(pushed=SourceRow(transition.seq, transition.at))
        self._put(transition.task_id, transition.map_index, instance, transition.iteration)


class _StatesByTask(Mapping[str, Mapping[str | None, AbstractSet[int]]]):
    """The current states of all instances, for a prediction."""

    def __init__(self, tasks: Mapping[str, TaskInstances]) -> None:
        self._tasks = tasks

    @override
    def __getitem__(self, task_id: str) -> Mapping[str | None, AbstractSet[int]]:
        return self._tasks[task_id].by_state

    @override
    def get(self, task_id: str, default: object = None) -> Any:
        instances = self._tasks.get(task_id)
        return default if instances is None else instances.by_state

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    @override
    def __len__(self) -> int:
        return len(self._tasks)


def _is_push_kept(before: TaskInstance, transition: Transition) -> bool:
    return transition.state in _PUSH_KEEPING_STATES and transition.try_number == before.try_number


def _is_marked_success(before: TaskInstance, transition: Transition) -> bool:
    return transition.state == "success" and transition.try_number == before.try_number
