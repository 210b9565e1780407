"""The structure of a DAG, read from what Airflow serialised.

The shape is that of `airflow.serialization.serialized_objects.DagSerialization`, the same in its versions 1 to 3 for
what is needed here; everything else is skipped while reading.
"""

from __future__ import annotations

import zlib
from functools import cached_property

import msgspec


class Task(msgspec.Struct, frozen=True):
    """An operator, mapped or not."""

    task_id: str
    downstream_task_ids: list[str] = []
    is_teardown: bool = False
    on_failure_fail_dagrun: bool = False


class _Operator(msgspec.Struct):
    task: Task = msgspec.field(name="__var")


class _Dag(msgspec.Struct):
    tasks: list[_Operator]


class _Serialized(msgspec.Struct):
    dag: _Dag


_decoder = msgspec.json.Decoder(_Serialized)


class Graph:
    """Tasks and their order."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = {task.task_id: task for task in tasks}

    @classmethod
    def parse(cls, data: str | bytes | None, compressed: bytes | None = None) -> Graph:
        """Read `serialized_dag.data`, or `data_compressed` where `[core] compress_serialized_dags` is set.

        Raises:
            msgspec.MsgspecError: The text has another shape than Airflow 3 writes.
        """
        text = zlib.decompress(compressed) if compressed else data or b""
        return cls([operator.task for operator in _decoder.decode(text).dag.tasks])

    @cached_property
    def effective_leaves(self) -> frozenset[str]:
        """Tasks whose states decide the state of the run (`DagRun._tis_for_dagrun_state`)."""
        leaves = {task.task_id for task in self.tasks.values() if self._is_effective_leaf(task)}
        return frozenset(leaves) or frozenset(
            task.task_id for task in self.tasks.values() if not task.downstream_task_ids
        )

    @cached_property
    def only_leaf(self) -> str | None:
        """The task that answers where nobody has said which one does.

        It is the only effective leaf, teardowns set aside: they clean up, whether or not they may fail the run.
        """
        leaves = [
            task.task_id
            for task in self.tasks.values()
            if not task.is_teardown and all(self.tasks[below].is_teardown for below in task.downstream_task_ids)
        ]
        return leaves[0] if len(leaves) == 1 else None

    def _is_effective_leaf(self, task: Task) -> bool:
        def ignorable(task: Task) -> bool:
            return task.is_teardown and not task.on_failure_fail_dagrun

        return not ignorable(task) and all(ignorable(self.tasks[below]) for below in task.downstream_task_ids)
