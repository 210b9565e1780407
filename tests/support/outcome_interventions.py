"""One DAG run in which people and Airflow intervene: timeouts, marks, clears, deletions, new DAG versions.

All writes are those of Airflow's scheduler and of its API (`airflow.api_fastapi.core_api`). The test acts as the
workers and as the clock.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from airflow.api_fastapi.core_api.datamodels.dag_run import DagRunMutableStates
from airflow.api_fastapi.core_api.services.public.dag_run import patch_dag_run_state
from airflow.exceptions import AirflowException
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag_version import DagVersion
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.expandinput import NotFullyPopulated
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import (
    TaskInstance,
    _stop_remaining_tasks,
    find_relevant_relatives,
)
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from typing_extensions import override

from support import outcome_airflow
from support.outcome_clock import CLOCK
from support.outcome_dags import DAG_ID
from support.outcome_scheduler import IN_ORDER, InstanceKey, OrderedDeps, Run, SchedulerDatabase

RUN_MARKS = tuple(DagRunMutableStates)


class OrderedDagBag(DBDagBag):  # type: ignore[misc]
    """The DAG versions of a run, with dependencies in an order that the seed decides."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(load_op_links=False)
        self._rng = rng
        self._read: dict[UUID | str, SerializedDAG] = {}

    @override
    def _get_dag(self, version_id: UUID | str, session: Session) -> SerializedDAG | None:
        if version_id not in self._read:
            stored = session.scalar(select(SerializedDagModel).where(SerializedDagModel.dag_version_id == version_id))
            assert stored is not None, "each version is stored with its DAG"
            dag = DagSerialization.from_dict(stored.data)
            for task in dag.task_dict.values():
                task.deps = OrderedDeps(sorted(task.deps, key=lambda dep: dep.NAME))
                task.deps.shuffle(self._rng)
            self._read[version_id] = dag
        return self._read[version_id]


class WatchedAirflowRun(Run):
    """A run whose DAG is stored in the database, with all that can happen to it.

    Args:
        database: Where it is written; `close` rolls it back.
        text: The DAG, serialised.
        sources: Tasks whose values determine how often mapped tasks run.
        rng: Makes the choices that are random in Airflow.
        marked: Tasks with Airflow 3.3's own result mark.
    """

    def __init__(
        self,
        database: SchedulerDatabase,
        text: str,
        sources: Collection[str],
        rng: random.Random,
        marked: Collection[str],
    ) -> None:
        self._store_dag(database.session, database.version_id, text)
        super().__init__(database, text, sources, rng)
        self._marked = marked
        self._versions = 1
        self._bag = OrderedDagBag(rng)
        outcome_airflow.serve_versions(self._bag._get_dag)
        self._scheduler = SchedulerJobRunner(job=Job(id=1), executors=[object()])
        self._scheduler.scheduler_dag_bag = self._bag
        self._stale: set[InstanceKey] = set()
        """Running instances whose worker has yet to delete the values of earlier tries."""

    @property
    def session(self) -> Session:
        return self._session

    def dag_of(self, version: UUID | None) -> SerializedDAG:
        """Return the DAG of a version."""
        return self.dag if version is None else self._bag.get_dag(version, self._session)

    def _read_for_api(self) -> SerializedDAG:
        """Return the DAG as the API reads it: a copy of its own, because it makes partial copies of that."""
        self._api_dag = OrderedDagBag(random.Random(0)).get_dag_for_run(self._run, self._session)
        return self._api_dag

    @override
    def schedule(self) -> None:
        """Run one loop of the scheduler for the run, if it is queued or running."""
        if self._run.state == DagRunState.QUEUED:
            # `SchedulerJobRunner._start_queued_dagruns`
            self._run.state = DagRunState.RUNNING
            self._run.start_date = CLOCK()
        elif self._run.state == DagRunState.RUNNING:
            self._scheduler._schedule_dag_run(self._run, self._session)
        self.dag = self._bag.get_dag_for_run(self._run, self._session)
        self._refresh()

    # What workers do.

    @override
    def start(self, instance_key: InstanceKey) -> None:
        super().start(instance_key)
        self._stale.add(instance_key)

    def delete_stale_value(self, instance_key: InstanceKey) -> bool:
        """Delete what an earlier try pushed (`TIRunContext.xcom_keys_to_clear`). Return whether that was due."""
        if instance_key not in self._stale:
            return False
        self._stale.discard(instance_key)
        outcome_airflow.delete_values(self._session, *instance_key)
        self._refresh()
        return True

    def push(self, instance_key: InstanceKey, value: object) -> None:
        """Push a return value, in a transaction of its own."""
        outcome_airflow.push_return_value(
            self._session,
            self._instance(instance_key),
            value,
            is_source=instance_key[0] in self._sources,
            is_marked=instance_key[0] in self._marked,
        )
        self._refresh()

    @override
    def fail(self, instance_key: InstanceKey) -> None:
        """Fail without a retry. A fail-fast DAG stops the others too, also those that it does not have any more."""
        if self.dag.fail_fast:
            teardowns = defaultdict(bool, {task_id: task.is_teardown for task_id, task in self.dag.task_dict.items()})
            _stop_remaining_tasks(
                task_instance=self._instance(instance_key), task_teardown_map=teardowns, session=self._session
            )
        self._set(instance_key, "failed")

    def finish(self, instance_key: InstanceKey) -> None:
        """Succeed without a further value."""
        self._set(instance_key, "success")

    @override
    def retry(self, instance_key: InstanceKey) -> None:
        """Wait for another try. Airflow archives this one."""
        outcome_airflow.wait_for_retry(self._instance(instance_key), self._session)
        self._refresh()

    def stop(self, instance_key: InstanceKey) -> None:
        """End a task that was cleared while it ran (`SchedulerJobRunner.process_executor_events`)."""
        outcome_airflow.end_restart(self._instance(instance_key), self._session)
        self._refresh()

    # What people and the clock do.

    def expire(self) -> None:
        """Let the `dagrun_timeout` of the run pass. The next loop of the scheduler ends it."""
        self._session.execute(
            update(DagRun).values(start_date=CLOCK() - timedelta(days=1)),
            execution_options={"synchronize_session": False},
        )
        self._session.expire(self._run)

    def mark_run(self, state: DagRunMutableStates) -> None:
        """`PATCH /dags/{dag_id}/dagRuns/{run_id}`."""
        patch_dag_run_state(dag=self._read_for_api(), dag_run=self._run, state=state, session=self._session)
        self._refresh()

    def mark_task(
        self, instance_key: InstanceKey, state: str, *, all_indexes: bool, upstream: bool, downstream: bool
    ) -> None:
        """`PATCH /dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}`."""
        self._read_for_api().set_task_instance_state(
            task_id=instance_key[0],
            map_indexes=None if all_indexes else [instance_key[1]],
            run_id="run",
            state=TaskInstanceState(state),
            upstream=upstream,
            downstream=downstream,
            session=self._session,
        )
        self._refresh()

    def clear_run(self, *, only_failed: bool, only_new: bool, on_latest: bool) -> None:
        """`POST /dags/{dag_id}/dagRuns/{run_id}/clear` (`perform_clear_dag_run`)."""
        self._read_for_api().clear(
            run_id="run",
            task_ids=None,
            only_new=only_new,
            only_failed=only_failed and not only_new,
            run_on_latest_version=on_latest,
            session=self._session,
        )
        self._refresh()

    def clear_task(self, marker: str | InstanceKey, directions: Collection[str], *, on_latest: bool) -> None:
        """`POST /dags/{dag_id}/clearTaskInstances` (`post_clear_task_instances`).

        Args:
            marker: A task, or one instance of it.
            directions: `upstream`, `downstream`, both or neither.
            on_latest: Whether it runs on the newest version.
        """
        dag = self._read_for_api()
        normal = {marker} if isinstance(marker, str) else set()
        mapped = {marker} if isinstance(marker, tuple) else set()
        for direction in sorted(directions):
            found: Any = find_relevant_relatives(
                normal, mapped, dag=dag, run_id="run", direction=direction, session=self._session
            )
            normal.update(one for one in found if not isinstance(one, tuple))
            mapped.update(one for one in found if isinstance(one, tuple))
        markers = [*sorted(normal), *sorted(one for one in mapped if one[0] not in normal)]
        instances = dag.clear(
            dry_run=True, task_ids=markers, run_id="run", session=self._session, run_on_latest_version=on_latest
        )
        outcome_airflow.clear_instances(instances, normal, self._session, on_latest=on_latest)
        self._refresh()

    def delete_instance(self, instance_key: InstanceKey) -> None:
        """`DELETE /dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}`."""
        outcome_airflow.delete_instance(self._instance(instance_key), self._session)
        self._refresh()

    def deploy(self, text: str, sources: Collection[str], marked: Collection[str]) -> None:
        """Store another version of the DAG. The scheduler takes it up in its next loop."""
        self._versions += 1
        version = DagVersion(dag_id=DAG_ID, version_number=self._versions, bundle_name="bundle")
        self._session.add(version)
        self._session.flush()
        self._store_dag(self._session, version.id, text)
        self._sources, self._marked = sources, marked

    @staticmethod
    def _store_dag(session: Session, version_id: UUID, text: str) -> None:
        stored = SerializedDagModel(LazyDeserializedDAG(data=json.loads(text)))
        stored.dag_version_id = version_id
        session.add(stored)
        session.flush()

    @override
    def _set(self, instance_key: InstanceKey, state: str) -> None:
        """Set a state as the Execution API does: with the date of this try, whatever an earlier one has left."""
        instance = self._instance(instance_key)
        # Before the state: the journal has the dates that are written together with it.
        if state == "running":
            instance.start_date = CLOCK()
        else:
            instance.end_date = CLOCK()
        instance.set_state(state, session=self._session)
        self._refresh()

    @override
    def _instance(self, instance_key: InstanceKey) -> Any:
        chosen = select(TaskInstance).where(
            TaskInstance.task_id == instance_key[0],
            outcome_airflow.public_index() == instance_key[1],
            *outcome_airflow.CURRENT,
        )
        *_, instance = self._session.scalars(chosen.order_by(*IN_ORDER))
        if self.dag.has_task(instance_key[0]):
            instance.task = self.dag.task_dict[instance_key[0]]
        return instance

    @override
    def _refresh(self) -> None:
        super()._refresh()
        for one in list(self._session):
            if isinstance(one, TaskInstance):
                one.__dict__.pop("task", None)
        self._session.expire(self._run)


REFUSALS = (AirflowException, NotFullyPopulated, ReferenceError)
"""What Airflow's API raises if it cannot do something now (`ReferenceError`: nested groups in `partial_subset`)."""

Change = Callable[[WatchedAirflowRun], None]


class Intervention(NamedTuple):
    """Something that people or the clock do to a run."""

    name: str
    kinds: tuple[str, ...]
    """The kinds that happen with it (`outcome_kinds.HISTORY_KINDS`)."""

    make: Change


def choose_intervention(  # noqa: PLR0911
    rng: random.Random, instances: Mapping[InstanceKey, Any], state: str, newer: Callable[[], Change] | None
) -> Intervention | None:
    """Return something that can happen to a run now.

    Args:
        rng: Makes the choices.
        instances: All task instances.
        state: State of the run.
        newer: Makes the deployment of another version of the DAG; `None` if there is none left.
    """
    if not instances:
        return None
    key = rng.choice(sorted(instances))
    on_latest = rng.random() < 0.3
    directions = [one for one in ("upstream", "downstream") if rng.random() < 0.3]
    kinds = ["mark task", "mark task", "clear task", "clear task", "clear index", "clear run", "delete instance"]
    if state == "running":
        kinds += ["expire", "expire", "mark run", "mark run"]
    else:
        kinds += ["mark run"]
    if newer is not None:
        kinds += ["deploy", "deploy"]
    kind = rng.choice(kinds)
    if kind == "mark run":
        mark = rng.choice(RUN_MARKS)
        return Intervention(f"mark run {mark.value}", (f"mark run {mark.value}",), lambda run: run.mark_run(mark))
    if kind == "mark task":
        to = rng.choice(("success", "failed", "skipped") if rng.random() < 0.2 else ("success", "failed"))
        every = rng.random() < 0.5
        found = (f"mark task {to}", *(f"mark with {one}" for one in directions))
        return Intervention(
            f"mark {key} {to} {directions}",
            found,
            lambda run: run.mark_task(
                key, to, all_indexes=every, upstream="upstream" in directions, downstream="downstream" in directions
            ),
        )
    latest = ("clear on the latest version",) if on_latest else ()
    if kind == "clear run":
        only_failed, only_new = rng.random() < 0.4, rng.random() < 0.15
        which = "clear run, only new" if only_new else "clear run, only failed" if only_failed else "clear run"
        return Intervention(
            f"clear run, only_failed={only_failed} only_new={only_new} on_latest={on_latest}",
            (which, *latest),
            lambda run: run.clear_run(only_failed=only_failed, only_new=only_new, on_latest=on_latest),
        )
    if kind in {"clear task", "clear index"}:
        marker: str | InstanceKey = key if kind == "clear index" else key[0]
        which = "clear one index" if kind == "clear index" and key[1] >= 0 else "clear task"
        return Intervention(
            f"clear {marker} {directions} on_latest={on_latest}",
            (which, *latest, *(f"clear with {one}" for one in directions)),
            lambda run: run.clear_task(marker, directions, on_latest=on_latest),
        )
    if kind == "delete instance":
        return Intervention(f"delete {key}", ("delete instance",), lambda run: run.delete_instance(key))
    if kind == "expire":
        return Intervention("expire", (), WatchedAirflowRun.expire)
    assert newer is not None, "a version is left"
    return Intervention("deploy", ("deploy",), newer())
