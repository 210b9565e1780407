"""What Airflow and people can do to a run next, in real tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from support.run_knowledge import read_instances, read_tables
from support.scenarios.scenario_run import ScenarioRun
from support.version_moves import VersionMoves

Move = Callable[[], Awaitable[object]]

_NEXT_STATE = {
    "up_for_retry": "scheduled",
    "up_for_reschedule": "scheduled",
    "deferred": "scheduled",
    "awaiting_input": "scheduled",
    "scheduled": "queued",
    "queued": "running",
}
_RUN_ENDS = ("success", "failed")


class RunMoves:
    """The moves that are possible now, by name.

    Args:
        run: The run.
        versions: The versions of its DAG.
        length: Number of instances that the mapped task expands to.
    """

    def __init__(self, run: ScenarioRun, versions: VersionMoves, length: int) -> None:
        self._run = run
        self._versions = versions
        self._length = length
        self._values = 0

    async def possible(self) -> dict[str, Move]:
        """Return the moves that are possible now."""
        tables = await read_tables(self._run.airflow.connection, self._run.key)
        if tables.run is None:
            return {"create the run again": self._versions.create_again}
        instances = await read_instances(self._run.airflow.connection, self._run.key)
        moves = dict(self._run_moves(tables.run[0])) | await self._versions.possible(tables.run[0])
        for (task_id, map_index), (state, tries) in instances.items():
            name = task_id if map_index < 0 else f"{task_id}[{map_index}]"
            if tables.run[0] == "running":
                moves |= {f"{name} {text}": move for text, move in self._task_moves(task_id, map_index, state, tries)}
            moves |= {f"{name} {text}": move for text, move in self._interventions(task_id, map_index, state)}
        return moves

    def _run_moves(self, state: str | None) -> Iterator[tuple[str, Move]]:
        run = self._run
        if state == "queued":
            yield "run starts", partial(run.set_run, "running")
        if state == "running":
            for end in _RUN_ENDS:
                yield f"run ends with {end}", partial(run.set_run, end)
        yield "run is deleted", partial(run.airflow.delete_run, run.key)

    def _task_moves(self, task_id: str, map_index: int, state: str | None, tries: int) -> Iterator[tuple[str, Move]]:
        run = self._run
        to = partial(run.set_task, task_id, map_index=map_index)
        if state is None:
            if task_id == "square" and map_index < 0:
                yield "expands", partial(run.airflow.expand, run.key, run.version, task_id, self._length)
            yield "is scheduled", partial(to, "scheduled")
            for end in ("skipped", "upstream_failed", "removed"):
                yield f"becomes {end}", partial(to, end)
        elif state == "queued":
            yield "starts", partial(self._start, task_id, map_index)
        elif state in _NEXT_STATE:
            yield f"becomes {_NEXT_STATE[state]}", partial(to, _NEXT_STATE[state])
        elif state == "running":
            yield "returns a value", partial(self._return_value, task_id, map_index)
            yield "pushes a value", partial(self._push, task_id, map_index)
            yield "emits output", partial(self._emit, task_id, map_index, tries)
            for other in ("success", "failed", "up_for_retry", "up_for_reschedule", "deferred", "skipped"):
                yield f"becomes {other}", partial(to, other)

    def _interventions(self, task_id: str, map_index: int, state: str | None) -> Iterator[tuple[str, Move]]:
        run = self._run
        yield "is cleared", partial(run.airflow.clear, run.key, [task_id])
        for mark in ("success", "failed"):
            if state != mark:
                yield f"is marked {mark}", partial(run.set_task, task_id, mark, map_index)
        yield "is deleted", partial(self._delete, task_id, map_index)

    async def _start(self, task_id: str, map_index: int) -> None:
        await self._run.set_task(task_id, "running", map_index)
        await self._run.delete_xcoms(task_id, map_index)

    async def _push(self, task_id: str, map_index: int) -> None:
        self._values += 1
        await self._run.push(task_id, f"value {self._values}", map_index)

    async def _return_value(self, task_id: str, map_index: int) -> None:
        await self._push(task_id, map_index)
        await self._run.set_task(task_id, "success", map_index)

    async def _emit(self, task_id: str, map_index: int, tries: int) -> None:
        self._values += 1
        await self._run.airflow.emit_output(
            self._run.key, task_id, self._values, f"word {self._values}", map_index=map_index, try_number=tries
        )

    async def _delete(self, task_id: str, map_index: int) -> None:
        await self._run.airflow.connection.execute(
            "DELETE FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4",
            *self._run.key,
            task_id,
            map_index,
        )
