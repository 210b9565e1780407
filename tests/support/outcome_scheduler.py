"""One DAG run, driven by the code of Airflow's own scheduler on a real database. The test acts as the workers."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from typing import Any, NamedTuple

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance, _stop_remaining_tasks
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from support import outcome_airflow
from support.outcome_dags import DAG_ID

FINAL = frozenset({"success", "failed"})
UNFINISHED_WORK = frozenset({"scheduled", "queued", "running"})

InstanceKey = tuple[str, int]

IN_ORDER = (TaskInstance.task_id, TaskInstance.map_index)
"""The newest iteration of a task in a loop is the last one: its number is where others have the `map_index`."""

_INDEX = "region_index" if outcome_airflow.HAS_ROW_PER_TRY else "map_index"
_IS_CURRENT = "working_set" if outcome_airflow.HAS_ROW_PER_TRY else "true"
_ROWS = (
    f"SELECT task_id, {_INDEX}, state, try_number, end_date IS NOT NULL FROM task_instance WHERE {_IS_CURRENT}"
    f" ORDER BY task_id, {_INDEX}"
)
"""As text: it is read at each moment, and SQLAlchemy would spend most of the time on its own objects."""


class Row(NamedTuple):
    """A task instance in the database."""

    state: str | None
    try_number: int
    dated: bool
    """Whether it has an `end_date`."""

    iteration: int | None = None
    """Of a task in a loop, its newest iteration."""


class OrderedDeps:
    """The dependencies of a task, in an order that does not depend on where their classes are in memory.

    Airflow keeps them in a set, and writes a state for each: the last state depends on the order.
    """

    def __init__(self, deps: Collection[Any]) -> None:
        self._deps = list(deps)

    def shuffle(self, rng: random.Random) -> None:
        rng.shuffle(self._deps)

    def __ror__(self, others: Collection[Any]) -> list[Any]:
        return [*others, *self._deps]


class SchedulerDatabase:
    """A DAG and a version, which all runs of a session need. The runs themselves are never committed."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.add(DagBundleModel(name="bundle"))
        session.flush()
        model = DagModel(dag_id=DAG_ID, bundle_name="bundle", is_paused=False, timetable_type="NullTimetable")
        model.relative_fileloc = "random.py"
        session.add(model)
        session.flush()
        version = DagVersion(dag_id=DAG_ID, version_number=1, bundle_name="bundle")
        session.add(version)
        session.flush()
        self.version_id, self.created_at = version.id, version.created_at
        session.commit()


class Run:
    """A run of a DAG.

    Args:
        database: Where it is written; `close` rolls it back.
        text: The DAG, serialised.
        sources: Tasks whose values determine how often mapped tasks run.
        rng: Makes the choices that are random in Airflow.
    """

    def __init__(self, database: SchedulerDatabase, text: str, sources: Collection[str], rng: random.Random) -> None:
        self._session = database.session
        self._sources = sources
        self.dag = DagSerialization.from_dict(json.loads(text))
        for task in self.dag.task_dict.values():
            task.deps = OrderedDeps(sorted(task.deps, key=lambda dep: dep.NAME))
        self._looped = outcome_airflow.find_looped_tasks(self.dag)
        outcome_airflow.serve_dag(database.version_id, self.dag)
        self.shuffle(rng)
        model: Any = self._session.get(DagModel, DAG_ID)
        model.fail_fast = bool(self.dag.fail_fast)
        self._run = DagRun(
            dag_id=DAG_ID,
            run_id="run",
            run_type=DagRunType.MANUAL,
            state=DagRunState.RUNNING,
            triggered_by=DagRunTriggeredByType.TEST,
            run_after=database.created_at,
            start_date=database.created_at,
        )
        self._run.dag = self.dag
        self._run.created_dag_version_id = database.version_id
        self._session.add(self._run)
        self._session.flush()
        self._run.verify_integrity(session=self._session, dag_version_id=database.version_id)
        self._session.flush()

    def shuffle(self, rng: random.Random) -> None:
        """Have Airflow check the dependencies of tasks in another order."""
        for task in self.dag.task_dict.values():
            task.deps.shuffle(rng)

    def close(self) -> None:
        """Delete all rows. Airflow commits when it forces other tasks to fail (`TaskInstance.error`)."""
        self._session.rollback()
        outcome_airflow.delete_runs(self._session)
        self._session.execute(delete(DagVersion).where(DagVersion.version_number > 1))
        self._session.commit()
        self._session.expunge_all()

    @property
    def sources(self) -> Collection[str]:
        """Tasks whose values determine how often mapped tasks run."""
        return self._sources

    @property
    def state(self) -> str:
        return str(DagRunState(self._run.state).value)

    def rows(self) -> dict[InstanceKey, Row]:
        """Return all task instances in the database."""
        self._session.flush()
        rows: dict[InstanceKey, Row] = {}
        for task_id, map_index, state, try_number, dated in self._session.connection().exec_driver_sql(_ROWS):
            iteration = map_index if task_id in self._looped else None
            row = Row(state, try_number, bool(dated), iteration)
            rows[task_id, -1 if task_id in self._looped else map_index] = row
        return rows

    def schedule(self) -> None:
        """Run one loop of the scheduler for the run (`SchedulerJobRunner._schedule_dag_run`)."""
        ready, _ = self._run.update_state(session=self._session, execute_callbacks=False)
        self._run.schedule_tis(ready, session=self._session)
        self._refresh()

    def start(self, instance_key: InstanceKey) -> None:
        self._set(instance_key, "running")

    def succeed(self, instance_key: InstanceKey, length: int) -> None:
        """Succeed with a list of this length, from which mapped tasks are expanded."""
        instance = self._instance(instance_key)
        if instance_key[0] in self._sources:
            values = list(range(length))
            outcome_airflow.push(self._session, instance, "return_value", values, is_source=True)
        self._set(instance_key, "success")

    def decide(self, instance_key: InstanceKey, skipped: list[str]) -> None:
        """Have a task that branches or short-circuits skip others, and succeed (`SkipMixin`)."""
        if skipped:
            branches = "Branch" in self.dag.task_dict[instance_key[0]].task_type
            direct = self.dag.task_dict[instance_key[0]].downstream_task_ids
            decision = {"followed": sorted(direct - set(skipped))} if branches else {"skipped": skipped}
            outcome_airflow.push(self._session, self._instance(instance_key), "skipmixin_key", decision)
            if instance_key[1] < 0:
                outcome_airflow.skip_downstream(self._instance(instance_key), skipped, self._session)
        self._set(instance_key, "success")

    def fail(self, instance_key: InstanceKey) -> None:
        """Fail without a retry; a fail-fast DAG stops the others too (`_handle_fail_fast_for_dag`)."""
        if self.dag.fail_fast:
            teardowns = {task_id: task.is_teardown for task_id, task in self.dag.task_dict.items()}
            _stop_remaining_tasks(
                task_instance=self._instance(instance_key), task_teardown_map=teardowns, session=self._session
            )
        self._set(instance_key, "failed")

    def complete_gate(self, instance_key: InstanceKey, *, stops: bool) -> None:
        """Succeed as the gate of a loop."""
        gate = self._instance(instance_key)
        outcome_airflow.complete_gate(gate, self._session, stops=stops)
        # By its key, the gate of the next iteration would be found.
        gate.set_state("success", session=self._session)
        self._refresh()

    def skip(self, instance_key: InstanceKey) -> None:
        self._set(instance_key, "skipped")

    def retry(self, instance_key: InstanceKey) -> None:
        self._set(instance_key, "up_for_retry")

    def _instance(self, instance_key: InstanceKey) -> Any:
        chosen = select(TaskInstance).where(
            TaskInstance.dag_id == DAG_ID, TaskInstance.task_id == instance_key[0], *outcome_airflow.CURRENT
        )
        if instance_key[0] not in self._looped:
            chosen = chosen.where(TaskInstance.map_index == instance_key[1])
        *_, instance = self._session.scalars(chosen.order_by(*IN_ORDER))
        instance.task = self.dag.task_dict[instance_key[0]]
        return instance

    def _set(self, instance_key: InstanceKey, state: str) -> None:
        self._instance(instance_key).set_state(state, session=self._session)
        self._refresh()

    def _refresh(self) -> None:
        """Expire the session's task instances: Airflow also changes them outside of it."""
        self._session.flush()
        for one in list(self._session):
            if isinstance(one, TaskInstance):
                self._session.expire(one)
