"""What simulated runs need that differs between versions of Airflow.

From Airflow 3.4 on each try of a task instance has a row, XComs belong to a try, and the scheduler's code reads DAGs by
their version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any

from airflow.api_fastapi.execution_api.datamodels.taskinstance import TISkippedDownstreamTasksStatePayload
from airflow.api_fastapi.execution_api.routes.task_instances import ti_skip_downstream
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.xcom import XComModel
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import delete
from sqlalchemy.orm import Session

HAS_ROW_PER_TRY = hasattr(TaskInstance, "working_set")

_RUN_TABLES = (
    (
        ("airflow.models.xcom", "XComModelV2"),
        ("airflow.models.xcom", "XComModelV1"),
        ("airflow.models.taskinstance", "TaskInstance"),
    )
    if HAS_ROW_PER_TRY
    else (
        ("airflow.models.xcom", "XComModel"),
        ("airflow.models.taskmap", "TaskMap"),
        ("airflow.models.taskinstancehistory", "TaskInstanceHistory"),
        ("airflow.models.taskinstance", "TaskInstance"),
    )
)

CURRENT: Sequence[Any] = (TaskInstance.working_set.is_(True),) if HAS_ROW_PER_TRY else ()
"""Conditions for the rows of current tries."""


def delete_runs(session: Session) -> None:
    """Delete all runs, and all that belongs to them."""
    for module, name in _RUN_TABLES:
        session.execute(delete(getattr(import_module(module), name)))
    if HAS_ROW_PER_TRY:
        session.execute(delete(import_module("airflow.models.dynamic_region").DynamicRegion))
    session.execute(delete(DagRun))
    session.execute(delete(SerializedDagModel))


def store_dag(session: Session, version_id: Any, text: str) -> None:
    """Store the DAG of a version."""
    stored = SerializedDagModel(LazyDeserializedDAG(data=json.loads(text)))
    stored.dag_version_id = version_id
    session.add(stored)
    session.flush()


def serve_dag(version_id: Any, dag: Any) -> None:
    """Have the scheduler of Airflow 3.4 read this object as the DAG of a version."""
    if not HAS_ROW_PER_TRY:
        return
    dag.dag_version_id = version_id
    DBDagBag._get_dag = lambda *_args, **_options: dag


def serve_versions(read: Callable[[Any, Session], Any]) -> None:
    """Have the code of Airflow 3.4 read the DAG of each version so, where it makes a `DBDagBag` of its own."""
    if HAS_ROW_PER_TRY:
        DBDagBag._get_dag = lambda _bag, version_id, session: read(version_id, session)


def push_return_value(session: Session, instance: Any, value: object, *, is_source: bool, is_marked: bool) -> None:
    """Push a return value, as it is stored.

    Args:
        session: Where to write.
        instance: The task instance that pushes it.
        value: Its value.
        is_source: Whether it is a list over which tasks are mapped.
        is_marked: Whether the task has Airflow's own result mark.
    """
    is_mapped_over = is_source and isinstance(value, list) and instance.map_index < 0
    if HAS_ROW_PER_TRY:
        XComModel.set_for_attempt(
            task_instance_id=instance.id,
            key="return_value",
            value=value,
            serialize=False,
            dag_result=is_marked,
            mapped_length=len(value) if is_mapped_over and isinstance(value, list) else None,
            session=session,
        )
        return
    if is_mapped_over:
        session.merge(import_module("airflow.models.taskmap").TaskMap.from_task_instance_xcom(instance, value))
    XComModel.set(
        key="return_value",
        value=value,
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        task_id=instance.task_id,
        map_index=instance.map_index,
        serialize=False,
        dag_result=is_marked,
        session=session,
    )


def delete_values(session: Session, task_id: str, map_index: int) -> None:
    """Delete what an earlier try has pushed. On Airflow 3.4 a try has values of its own."""
    if not HAS_ROW_PER_TRY:
        session.execute(delete(XComModel).where(XComModel.task_id == task_id, XComModel.map_index == map_index))


def wait_for_retry(instance: Any, session: Session) -> None:
    """Archive a try that failed, and wait for the next one, as the Execution API does."""
    if HAS_ROW_PER_TRY:
        instance.set_state(TaskInstanceState.UP_FOR_RETRY, session=session)
        instance.prepare_db_for_next_try(session)
        return
    instance.prepare_db_for_next_try(session)
    instance.set_state(TaskInstanceState.UP_FOR_RETRY, session=session)


def end_restart(instance: Any, session: Session) -> None:
    """End a task that was cleared while it ran (`SchedulerJobRunner.process_executor_events`)."""
    if HAS_ROW_PER_TRY:
        instance.complete_restart(session=session)
        return
    instance.max_tries = instance.try_number + instance.task.retries
    instance.set_state(None, session=session)


def clear_instances(
    instances: Collection[Any], task_ids: Collection[str], session: Session, *, on_latest: bool
) -> None:
    """Clear task instances, as the API does.

    Args:
        instances: The task instances.
        task_ids: Tasks of which all instances are cleared.
        session: Where to write.
        on_latest: Whether they run on the newest version of the DAG.
    """
    options: dict[str, Any] = {}
    if HAS_ROW_PER_TRY:
        options["whole_task_keys"] = {
            (one.dag_id, one.run_id, one.task_id) for one in instances if one.task_id in task_ids
        }
    clear_task_instances(list(instances), session, DagRunState.QUEUED, run_on_latest_version=on_latest, **options)


def delete_instance(instance: Any, session: Session) -> None:
    """Delete a task instance with all its tries, as the API does."""
    if not HAS_ROW_PER_TRY:
        session.delete(instance)
        return
    TaskInstance.delete_attempts(
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        task_id=instance.task_id,
        map_index=instance.region_index,
        region_id=instance.region_id,
        session=session,
    )


def push(session: Session, instance: Any, key: str, value: object, *, is_source: bool = False) -> None:
    """Store an XCom, as the Execution API does.

    Args:
        session: Where to write.
        instance: The task instance that pushes it.
        key: Its key.
        value: Its value.
        is_source: Whether it is a list over which tasks are mapped.
    """
    is_mapped_over = is_source and isinstance(value, list) and instance.map_index < 0
    if HAS_ROW_PER_TRY:
        length = len(value) if is_mapped_over and isinstance(value, list) else None
        XComModel.set_for_attempt(
            task_instance_id=instance.id, key=key, value=value, mapped_length=length, session=session
        )
        return
    if is_mapped_over:
        task_map = import_module("airflow.models.taskmap").TaskMap
        session.merge(task_map.from_task_instance_xcom(instance, value))
    XComModel.set(
        key=key,
        value=value,
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        task_id=instance.task_id,
        map_index=instance.map_index,
        session=session,
    )


def skip_downstream(instance: Any, task_ids: Sequence[str], session: Session) -> None:
    """Skip tasks, as the Execution API does for a task that branches."""
    payload = TISkippedDownstreamTasksStatePayload(tasks=[(task_id, -1) for task_id in task_ids])
    bag = (DBDagBag(load_op_links=False),) if HAS_ROW_PER_TRY else ()
    ti_skip_downstream(instance.id, payload, session, *bag)


def public_index() -> Any:
    """Return the `map_index` of Airflow's API."""
    if not HAS_ROW_PER_TRY:
        return TaskInstance.map_index
    return import_module("airflow.models.task_coordinates").public_map_index_expression(TaskInstance)


def find_looped_tasks(dag: Any) -> frozenset[str]:
    """Return the tasks in loops, and their gates (Airflow 3.4)."""
    if not HAS_ROW_PER_TRY:
        return frozenset()
    return frozenset(task.task_id for task in dag.tasks if find_loop(dag, task.task_id) is not None)


def find_loop(dag: Any, task_id: str) -> Any:
    """Return the task loop around a task; `None` without one."""
    if not HAS_ROW_PER_TRY or not dag.has_task(task_id):
        return None
    return import_module("airflow.models.task_coordinates").enclosing_loop(dag.get_task(task_id))


def complete_gate(instance: Any, session: Session, *, stops: bool) -> None:
    """Decide whether another iteration follows, as the Execution API does when a gate succeeds."""
    loop = import_module("airflow.models.task_coordinates").enclosing_loop(instance.task)
    is_last = instance.region_index + 1 >= loop.max_iterations
    state = TaskInstanceState.SUCCESS
    instance.dag_run.complete_loop_gate(instance, loop, state, stop=stops or is_last, reason=None, session=session)
