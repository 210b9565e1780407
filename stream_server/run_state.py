"""What is known of one DAG run: a snapshot of Airflow's tables, kept current by the journal.

Pure. Reading a run from the database gives the same state as following it from its first row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from stream_server.frames import (
    NO_STATUS,
    RunInfo,
    RunTransition,
    Snapshot,
    TaskInfo,
    TaskTransition,
)
from stream_server.graph import Graph
from stream_server.transition import RETURN_VALUE, Kind, Transition

MAX_LISTED_INSTANCES = 100
"""A task with more instances is told as counts per state: thousands of rows are no help to anybody."""

RUN_FINAL = frozenset({"success", "failed"})
"""States in which a run has ended (`airflow.utils.state.State.finished_dr_states`)."""

_CAN_PUSH = frozenset({"running", "success"})

_KEEPS_PUSH = frozenset({"running", "deferred", "awaiting_input", "scheduled", "queued", "success"})
"""States through which a try may go without losing its XComs; a deferred one is scheduled and runs again."""


class RunKey(NamedTuple):
    """What names a run; Airflow's `UNIQUE (dag_id, run_id)`."""

    dag_id: str
    run_id: str


class Origin(NamedTuple):
    """Journal row that something became known by; empty where it was known before the stream began."""

    seq: int | None = None
    at: datetime | None = None


class Instance(NamedTuple):
    """A task instance in its current try."""

    state: str | None
    try_number: int
    start_date: datetime | None = None
    end_date: datetime | None = None
    changed: Origin = Origin()
    pushed: Origin | None = None
    """By what its return value became known; `None` while this try has pushed none."""


class RunState:
    """The state of a run, and what follows from each transition."""

    def __init__(self, key: RunKey, run: RunInfo, graph: Graph | None = None) -> None:
        self.key = key
        self.run = run
        self.graph = graph
        """Structure of the DAG as this run sees it; `None` where Airflow kept none."""

        self.tasks: dict[str, dict[int, Instance]] = {}
        """Instances by task and `map_index`."""

        self.native_results: set[str] = set()
        """Tasks whose return value bears Airflow 3.3's own mark."""

        self.changed = Origin()
        self.deleted = False

    @property
    def final(self) -> bool:
        """Whether the run has ended, as far as Airflow knows."""
        return self.deleted or self.run.state in RUN_FINAL

    @property
    def task_ids(self) -> set[str]:
        """The tasks of the DAG."""
        return self.tasks.keys() | (self.graph.tasks.keys() if self.graph is not None else set())

    def add(self, task_id: str, map_index: int, instance: Instance) -> None:
        """Put in what the database says of one task instance."""
        self.tasks.setdefault(task_id, {})[map_index] = instance

    def apply(self, transition: Transition) -> TaskTransition | RunTransition | None:
        """Follow one transition.

        Returns:
            The frame that tells it, or `None` for what is no change of a state.
        """
        if transition.kind is Kind.TASK:
            return self._apply_task(transition)
        if transition.kind is Kind.RUN:
            return self._apply_run(transition)
        if transition.kind is Kind.XCOM:
            self._apply_xcom(transition)
        elif transition.kind is Kind.RUN_DELETED:
            self.deleted = True
            self.changed = Origin(transition.seq, transition.at)
        return None

    def forget_push(self, task_id: str, map_index: int) -> None:
        """Take back a return value that is not in the database any more."""
        instances = self.tasks[task_id]
        instances[map_index] = instances[map_index]._replace(pushed=None)

    def snapshot(self, result_tasks: tuple[str, ...]) -> Snapshot:
        """Tell all that is known."""
        listed: list[TaskInfo] = []
        counts: dict[str, dict[str, int]] = {}
        for task_id, instances in self.tasks.items():
            if len(instances) > MAX_LISTED_INSTANCES:
                states = Counter(instance.state or NO_STATUS for instance in instances.values())
                counts[task_id] = dict(states)
            else:
                listed.extend(_task_infos(task_id, instances))
        return Snapshot(
            dag_id=self.key.dag_id,
            run_id=self.key.run_id,
            run=self.run,
            tasks=listed,
            result_tasks=list(result_tasks),
            counts=counts,
        )

    def _apply_task(self, transition: Transition) -> TaskTransition:
        assert transition.task_id is not None, "the journal names the task of every task transition"
        assert transition.map_index is not None, "task_instance.map_index is NOT NULL"
        instances = self.tasks.setdefault(transition.task_id, {})
        if transition.map_index >= 0:
            instances.pop(-1, None)
        before = instances.get(transition.map_index)
        instances[transition.map_index] = Instance(
            state=transition.state,
            try_number=transition.try_number or 0,
            start_date=transition.start_date,
            end_date=transition.end_date,
            changed=Origin(transition.seq, transition.at),
            pushed=before.pushed if before and _keeps_push(before, transition) else None,
        )
        return TaskTransition(
            dag_id=transition.dag_id,
            run_id=transition.run_id,
            seq=transition.seq,
            at=transition.at,
            task_id=transition.task_id,
            map_index=transition.map_index,
            try_number=transition.try_number or 0,
            state=transition.state,
            previous_state=transition.previous_state,
        )

    def _apply_run(self, transition: Transition) -> RunTransition:
        self.run = RunInfo(
            state=transition.state,
            queued_at=transition.queued_at,
            start_date=transition.start_date,
            end_date=transition.end_date,
            clear_number=transition.clear_number or 0,
        )
        self.changed = Origin(transition.seq, transition.at)
        return RunTransition(
            dag_id=transition.dag_id,
            run_id=transition.run_id,
            seq=transition.seq,
            at=transition.at,
            state=transition.state,
            previous_state=transition.previous_state,
            clear_number=transition.clear_number or 0,
        )

    def _apply_xcom(self, transition: Transition) -> None:
        if transition.xcom_key != RETURN_VALUE:
            return
        assert transition.task_id is not None, "an XCom belongs to a task"
        assert transition.map_index is not None, "xcom.map_index is NOT NULL"
        instance = self.tasks.get(transition.task_id, {}).get(transition.map_index)
        # The Execution API accepts XComs of tasks that have been killed; they are no answer any more.
        if instance is None or instance.state not in _CAN_PUSH:
            return
        pushed = instance._replace(pushed=Origin(transition.seq, transition.at))
        self.tasks[transition.task_id][transition.map_index] = pushed
        if transition.dag_result:
            self.native_results.add(transition.task_id)


def _keeps_push(before: Instance, transition: Transition) -> bool:
    return transition.state in _KEEPS_PUSH and transition.try_number == before.try_number


def _task_infos(task_id: str, instances: dict[int, Instance]) -> Iterator[TaskInfo]:
    for map_index, instance in sorted(instances.items()):
        yield TaskInfo(
            task_id=task_id,
            map_index=map_index,
            try_number=instance.try_number,
            state=instance.state,
            start_date=instance.start_date,
            end_date=instance.end_date,
        )
