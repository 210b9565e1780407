"""`DAG`, `@dag` and `result_from`, which mark result tasks by ID."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, overload

import airflow.sdk

from stream_server.authoring.decorators import is_return_value, operator_of, result_task
from stream_server.authoring.errors import ContradictingMarks
from stream_server.authoring.result_marks import (
    AirflowDag,
    error_prefix,
    find_task,
    format_task_ids,
    is_marked,
    mark_result_task,
    tagged_task_ids,
)

DagFunction = Callable[..., Any]
"""The function under `@dag`: it creates the tasks."""

ResultTasks = str | Sequence[str] | None
"""One task ID, several, or none given."""


class DAG(airflow.sdk.DAG):  # type: ignore[misc] # Airflow is not type-checked here
    """Airflow's DAG with the argument `result_task`.

    Args:
        dag_id: As for Airflow's DAG.
        result_task: ID of the result task, or IDs of all result tasks. The tasks may be created later.
        options: All other arguments of Airflow's DAG.
    """

    def __init__(
        self,
        dag_id: str,
        *,
        result_task: ResultTasks = None,
        **options: Any,  # noqa: ANN401 # Airflow's
    ) -> None:
        super().__init__(dag_id, **options)
        # Airflow sets `fileloc` to the file of its caller, which is this module.
        self.fileloc = sys._getframe(1).f_code.co_filename  # noqa: SLF001 # as Airflow does
        self.result_tasks = (result_task,) if isinstance(result_task, str) else tuple(result_task or ())

    def result_from(self, *tasks: object) -> None:
        """Mark further tasks as result tasks; see the function `result_from`."""
        result_from(self, *tasks)

    def validate(self) -> None:
        """Check the DAG and set the missing marks. Airflow calls this after it has read the file.

        Raises:
            UnknownResultTask: `result_task`, or a tag `stream-result:…`, names a task that the DAG does not have.
            ContradictingMarks: A task is marked that `result_task` does not name.
            CannotAnswer: A named task never returns a value.
        """
        super().validate()
        self._mark_tasks([*self.result_tasks, *tagged_task_ids(self.tags)])
        self._check_marks()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            # Missing tasks may be added later in the file. `validate` reports those that stay missing.
            self._mark_tasks([task_id for task_id in self.result_tasks if task_id in self.task_dict])

    def _mark_tasks(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            mark_result_task(find_task(self, task_id))

    def _check_marks(self) -> None:
        marked = [task_id for task_id, task in self.task_dict.items() if is_marked(task)]
        if self.result_tasks and (others := [task_id for task_id in marked if task_id not in self.result_tasks]):
            raise ContradictingMarks(
                f"{error_prefix(self)}result_task names {format_task_ids(self.result_tasks)}, but"
                f" {format_task_ids(others)} is marked as a result task too. Name all of them,"
                f" result_task=[{format_task_ids([*self.result_tasks, *others])}], or remove a mark."
            )


def result_from(dag: AirflowDag, *tasks: object) -> None:
    """Mark tasks of a DAG as its result tasks.

    Args:
        dag: A DAG of Airflow or of this package. The tasks must exist already.
        tasks: Task IDs, with the prefixes of their task groups; or operators, or return values of TaskFlow functions.

    Raises:
        UnknownResultTask: The DAG has no task with this ID.
        CannotAnswer: The task never returns a value.
        ContradictingMarks: The task's params have `stream_result` set to false.
    """
    for task in tasks:
        mark_result_task(find_task(dag, task if isinstance(task, str) else operator_of(task).task_id))


@overload
def dag(function: DagFunction, /) -> Callable[..., DAG]: ...


@overload
def dag(
    dag_id: str = "",
    /,
    *,
    result_task: ResultTasks = None,
    **options: Any,  # noqa: ANN401 # Airflow's
) -> Callable[[DagFunction], Callable[..., DAG]]: ...


def dag(
    dag_id_or_function: str | DagFunction = "",
    /,
    *,
    result_task: ResultTasks = None,
    **options: Any,
) -> Callable[..., DAG] | Callable[[DagFunction], Callable[..., DAG]]:
    """Return a function that creates a DAG, as Airflow's `@dag` does, with the argument `result_task`.

    If the function returns the return value of one of its tasks, that task is a result task, too. Airflow 3.3 does this
    by itself; here it works on all versions.

    Args:
        dag_id_or_function: ID of the DAG, by default the name of the function; or, without parentheses, the function.
        result_task: As for `DAG`.
        options: All other arguments of Airflow's DAG.

    Raises:
        AuthoringError: When the returned function is called, for the same reasons as `DAG.validate`.
    """
    if not isinstance(dag_id_or_function, str):
        return _make_dag_factory(dag_id_or_function, "", result_task, options)
    dag_id = dag_id_or_function.strip()
    return lambda function: _make_dag_factory(function, dag_id, result_task, options)


def _make_dag_factory(
    function: DagFunction, dag_id: str, result_tasks: ResultTasks, options: dict[str, Any]
) -> Callable[..., DAG]:
    signature = inspect.signature(function)
    dag_options = {"dag_id": dag_id or function.__name__, **options}

    @wraps(function)
    def make(*args: object, **kwargs: object) -> DAG:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = DAG(**dag_options, result_task=result_tasks)
        with made:
            made.doc_md = made.doc_md or function.__doc__
            made.fileloc = sys._getframe(1).f_code.co_filename  # noqa: SLF001 # as Airflow does
            # Arguments become params, so that tasks get the value from the run's conf instead.
            returned = function(**{name: made.param(name, value) for name, value in bound.arguments.items()})
            if is_return_value(returned):
                result_task(returned)
        made.validate()
        return made

    return make
