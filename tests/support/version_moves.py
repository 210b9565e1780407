"""What can happen to a run while its DAG gets new versions, in real tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from support.scenarios.scenario_run import ScenarioRun, Tasks
from support.serialized_dags import Node

SHAPES: dict[str, Tasks] = {
    "the first shape": {
        "list": Node("square"),
        "square": Node("join", mapped_over="list"),
        "join": Node("clean_up"),
        "clean_up": Node(),
    },
    "one more leaf": {
        "list": Node("square"),
        "square": Node("join", mapped_over="list"),
        "join": Node("clean_up", "review"),
        "clean_up": Node(),
        "review": Node(),
    },
    "one task less": {"list": Node("square"), "square": Node("clean_up", mapped_over="list"), "clean_up": Node()},
    "another order": {
        "list": Node("square"),
        "square": Node("clean_up", mapped_over="list"),
        "clean_up": Node("join"),
        "join": Node(),
    },
}
"""A mapped task in the middle, and two tasks that may be the result: `join` by a tag, and the leaf."""

_UNFINISHED = "('scheduled', 'queued', 'running', 'restarting', 'up_for_retry', 'up_for_reschedule', 'deferred')"
"""States of `State.unfinished`. It has no state, too, which the condition of Airflow's UPDATE, `IN`, does not match."""


class VersionMoves:
    """The versions of the DAG of a run, and the moves that they make possible.

    Args:
        run: The run, before it is triggered.
        tags: Tags of all versions.
    """

    def __init__(self, run: ScenarioRun, tags: Sequence[str]) -> None:
        self._run = run
        self._tags = tags
        self._shape = next(iter(SHAPES))

    @property
    def tasks(self) -> Tasks:
        """The tasks of the newest version."""
        return SHAPES[self._shape]

    async def trigger(self) -> None:
        """Write the first version, and create a run."""
        await self._run.trigger(self.tasks, tags=self._tags)

    async def create_again(self) -> None:
        """Create a run with the id of one that was deleted, of the newest version."""
        await self._run.airflow.trigger(self._run.key, self._run.version, [*self.tasks])

    async def possible(self, state: str | None) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return the moves that are possible now.

        Args:
            state: State of the run.
        """
        moves: dict[str, Callable[[], Awaitable[object]]]
        moves = {f"DAG gets {shape}": partial(self._write, shape) for shape in SHAPES if shape != self._shape}
        if state == "running" and not await self._is_used():
            moves["run takes up the newest version"] = self._take_up
        for task_id in self.tasks:
            moves[f"{task_id} is cleared for the newest version"] = partial(self._clear, task_id)
        return moves

    async def _write(self, shape: str) -> None:
        await self._run.write_version(SHAPES[shape], tags=self._tags)
        self._shape = shape

    async def _is_used(self) -> bool:
        """Whether the run has an instance of the newest version (`DagRun.check_version_id_exists_in_dr`)."""
        return bool(
            await self._run.airflow.connection.fetchval(
                "SELECT EXISTS (SELECT FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND dag_version_id = $3)",
                *self._run.key,
                self._run.version,
            )
        )

    async def _take_up(self) -> None:
        """Do what the scheduler does for a running run (`SchedulerJobRunner._verify_integrity_if_dag_changed`)."""
        connection = self._run.airflow.connection
        async with connection.transaction():
            await connection.execute(
                "UPDATE task_instance SET dag_version_id = $3"
                f" WHERE dag_id = $1 AND run_id = $2 AND state IN {_UNFINISHED}",
                *self._run.key,
                self._run.version,
            )
            await self._verify_integrity(is_running=True)

    async def _clear(self, task_id: str) -> None:
        """Clear a task with `run_on_latest_version` (`clear_task_instances`)."""
        run, connection = self._run, self._run.airflow.connection
        has_ended = await connection.fetchval(
            "SELECT state IN ('success', 'failed') FROM dag_run WHERE dag_id = $1 AND run_id = $2", *run.key
        )
        async with connection.transaction():
            await run.airflow.clear(run.key, [task_id])
            await run.airflow.move_to_version(run.key, run.version, [task_id])
            if has_ended:
                await self._verify_integrity(is_running=False)

    async def _verify_integrity(self, *, is_running: bool) -> None:
        """Adapt the instances to the newest version (`DagRun.verify_integrity`): create, restore or remove them."""
        run, connection = self._run, self._run.airflow.connection
        of_run = "dag_id = $1 AND run_id = $2"
        await connection.execute(
            f"UPDATE task_instance SET state = NULL WHERE {of_run} AND state = 'removed' AND task_id = ANY ($3)",
            *run.key,
            [*self.tasks],
        )
        if not is_running:
            await connection.execute(
                f"UPDATE task_instance SET state = 'removed' WHERE {of_run} AND task_id <> ALL ($3)",
                *run.key,
                [*self.tasks],
            )
        rows = await connection.fetch(f"SELECT DISTINCT task_id FROM task_instance WHERE {of_run}", *run.key)
        for task_id in sorted(self.tasks.keys() - {row["task_id"] for row in rows}):
            await run.airflow.add_instance(run.key, run.version, task_id, -1)
