"""Airflow's side of a scenario, and the outcome that it expects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql, serialized_dag
from support.serialized_dags import Node

Tasks = Mapping[str, Node]


class Expected(NamedTuple):
    """The outcome that each client must know in the end."""

    type: str | None
    """`result`, `failure`, or `None` if the run has neither."""

    fields: Mapping[str, Any]
    """Fields of that frame."""


def result(**results: Any) -> Expected:
    return Expected("result", {"results": results})


def failure(reason: str, task_id: str | None = None, **fields: Any) -> Expected:
    return Expected("failure", {"reason": reason, **({"task_id": task_id} if task_id else {}), **fields})


NO_OUTCOME = Expected(None, {})
"""Neither a result nor a failure."""


def no_outcome(reason: str, task_id: str | None = None) -> Expected:
    """Return the outcome `none` with its reason; `fields` are those of the `end` frame."""
    return Expected(None, {"reason": reason, **({"task_id": task_id} if task_id else {})})


class ScenarioRun:
    """Airflow's side of a scenario."""

    def __init__(self, airflow: AirflowSql, other: AirflowSql, name: str, step: Callable[[], Awaitable[None]]) -> None:
        self.airflow = airflow
        self.other = other
        """A second session, for transactions that overlap."""

        self.key = RunKey(f"scenario_{name}", "manual__2026-11-22T10:00:00+00:00")
        self.step = step
        self._version: UUID | None = None

    @property
    def version(self) -> UUID:
        assert self._version is not None, "the scenario has called `trigger`"
        return self._version

    async def trigger(self, tasks: Tasks | None = None, *, tags: Sequence[str] = ()) -> None:
        """Add a DAG, `CHAIN` by default, and create a run that waits; clients start to watch it."""
        self._version = await self.airflow.add_serialized_dag(self.key.dag_id, self._serialize(tasks, tags))
        await self.airflow.trigger(self.key, self._version, [*(tasks or CHAIN)])
        await self.step()

    async def write_version(self, tasks: Tasks, *, tags: Sequence[str] = ()) -> None:
        """Change the DAG: `version` is another one, or the same one in place as long as no task instance uses it."""
        data = self._serialize(tasks, tags)
        if not await self.airflow.replace_unused_version(self.version, data):
            self._version = await self.airflow.add_serialized_dag(self.key.dag_id, data)

    async def start_task(self, task_id: str, map_index: int = -1) -> None:
        """Start a try, whose worker deletes the XComs of the try before (`TIRunContext.xcom_keys_to_clear`)."""
        await self.airflow.start_task(self.key, task_id, map_index)
        await self.delete_xcoms(task_id, map_index)

    async def delete_xcoms(self, task_id: str, map_index: int = -1) -> None:
        await self.airflow.connection.execute(
            "DELETE FROM xcom WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4",
            *self.key,
            task_id,
            map_index,
        )

    async def set_task(self, task_id: str, state: str | None, map_index: int = -1) -> None:
        await self.airflow.set_task(self.key, task_id, state, map_index)

    async def push(self, task_id: str, value: object, map_index: int = -1, **fields: Any) -> None:
        await self.airflow.push(self.key, task_id, value, map_index, **fields)

    async def return_value(self, task_id: str, value: object, map_index: int = -1, **fields: Any) -> None:
        """End a running task instance, which returns a value."""
        await self.push(task_id, value, map_index, **fields)
        await self.set_task(task_id, "success", map_index)

    async def run_task(self, task_id: str, value: object, map_index: int = -1) -> None:
        """Run a task instance that returns a value."""
        await self.start_task(task_id, map_index)
        await self.return_value(task_id, value, map_index)

    async def start_run(self, tasks: Tasks | None = None, *, tags: Sequence[str] = ()) -> None:
        """Trigger a run, and start it."""
        await self.trigger(tasks, tags=tags)
        await self.set_run("running")

    async def set_run(self, state: str) -> None:
        await self.airflow.set_run(self.key, state)

    async def skip(self, task_id: str, map_index: int = -1) -> None:
        """Skip an instance without running it, as a branching task or the scheduler does."""
        await self.airflow.connection.execute(
            "UPDATE task_instance SET state = 'skipped', start_date = now(), end_date = now()"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4",
            *self.key,
            task_id,
            map_index,
        )

    async def mark_run(self, state: str) -> None:
        """End the run as a person does (`mark_tasks._set_dag_run_terminal_state`)."""
        connection = self.airflow.connection
        async with connection.transaction():
            await connection.execute(
                "UPDATE task_instance SET state = 'skipped', start_date = coalesce(start_date, now()),"
                " end_date = coalesce(end_date, now()) WHERE dag_id = $1 AND run_id = $2"
                " AND (state IS NULL OR state IN ('scheduled', 'queued', 'up_for_retry'))",
                *self.key,
            )
            await self.set_run(state)
            await connection.execute(
                "UPDATE task_instance SET state = $3, end_date = clock_timestamp()"
                " WHERE dag_id = $1 AND run_id = $2 AND state IN ('running', 'deferred', 'up_for_reschedule')",
                *self.key,
                state,
            )

    async def time_out(self) -> None:
        """End the run as its timeout does (`SchedulerJobRunner._schedule_dag_run`): without an `end_date` of tasks."""
        connection = self.airflow.connection
        async with connection.transaction():
            await self.set_run("failed")
            await connection.execute(
                "UPDATE task_instance SET state = 'skipped' WHERE dag_id = $1 AND run_id = $2 AND (state IS NULL"
                " OR state NOT IN ('success', 'failed', 'skipped', 'upstream_failed', 'removed'))",
                *self.key,
            )

    def _serialize(self, tasks: Tasks | None, tags: Sequence[str]) -> dict[str, object]:
        if tasks is None:
            return serialized_dag(self.key.dag_id, CHAIN, {"clean_up": False})
        operators = [node.serialized(task_id) for task_id, node in tasks.items()]
        fields = {"dag_id": self.key.dag_id, "tasks": operators, "task_group": {}, "tags": [*tags]}
        return {"__version": 3, "dag": fields}

    async def emit(self, task_id: str, index: int, *items: object, try_number: int = 1) -> None:
        await self.airflow.emit_output(self.key, task_id, index, *items, try_number=try_number)

    async def finish_chain(self) -> None:
        """Run the teardown of `CHAIN`, and end the run."""
        await self.run_task("clean_up", None)
        await self.set_run("success")


Scenario = Callable[[ScenarioRun], Awaitable[Expected]]
