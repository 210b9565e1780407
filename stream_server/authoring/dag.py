"""`DAG`, `@dag` and `result_from`: marks that name tasks of a DAG."""

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
"""A function that makes the tasks of a DAG."""

ResultTasks = str | Sequence[str] | None
"""The name of a task, those of several, or that nothing is said here."""


class DAG(airflow.sdk.DAG):  # type: ignore[misc] # Airflow is not type-checked here
    """Airflow's DAG, which can be told the names of the tasks that answer.

    Args:
        dag_id: As Airflow has it.
        result_task: Task, or tasks, that answer; no others may. They may be made later.
        options: Everything else that Airflow's DAG takes.
    """

    def __init__(
        self,
        dag_id: str,
        *,
        result_task: ResultTasks = None,
        **options: Any,  # noqa: ANN401 # Airflow's
    ) -> None:
        super().__init__(dag_id, **options)
        # Airflow takes the file of its own caller, which is this one.
        self.fileloc = sys._getframe(1).f_code.co_filename  # noqa: SLF001 # as Airflow does
        self.result_tasks = (result_task,) if isinstance(result_task, str) else tuple(result_task or ())

    def result_from(self, *tasks: object) -> None:
        """Mark tasks as those that answer, besides those marked already; see the function of this name."""
        result_from(self, *tasks)

    def validate(self) -> None:
        """Check the DAG, as Airflow does when it has read the file, and complete the marks.

        Raises:
            UnknownResultTask: `result_task`, or a tag `stream-result:…`, names none of its tasks.
            ContradictingMarks: There is a mark on a task that `result_task` does not name.
            CannotAnswer: A task that is named never returns a value.
        """
        super().validate()
        self._mark_tasks([*self.result_tasks, *tagged_task_ids(self.tags)])
        self._check_marks()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            # What is missing may still come; Airflow calls `validate` at the end of the file.
            self._mark_tasks([task_id for task_id in self.result_tasks if task_id in self.task_dict])

    def _mark_tasks(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            mark_result_task(find_task(self, task_id))

    def _check_marks(self) -> None:
        marked = [task_id for task_id, task in self.task_dict.items() if is_marked(task)]
        if self.result_tasks and (others := [each for each in marked if each not in self.result_tasks]):
            raise ContradictingMarks(
                f"{error_prefix(self)}result_task names {format_task_ids(self.result_tasks)}, but"
                f" {format_task_ids(others)} is marked as a result task too. Name all of them,"
                f" result_task=[{format_task_ids([*self.result_tasks, *others])}], or remove a mark."
            )


def result_from(dag: AirflowDag, *tasks: object) -> None:
    """Mark tasks of a DAG as those that answer.

    Args:
        dag: A DAG of Airflow's or ours that has the tasks already.
        tasks: Their names, with the prefixes of their task groups; or operators, or what TaskFlow functions returned.

    Raises:
        UnknownResultTask: The DAG has no task of that name.
        CannotAnswer: The task never returns a value.
        ContradictingMarks: The task's params say that it does not answer.
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
    """Make a DAG of a function, as Airflow's `@dag` does, and say which tasks answer.

    What the function returns answers too, if it is what one of its tasks returns: Airflow 3.3 has it so, and here all
    versions do.

    Args:
        dag_id_or_function: The name of the DAG; by default that of the function. Without parentheses, the function.
        result_task: As for `DAG`.
        options: Everything else that Airflow's DAG takes.

    Raises:
        AuthoringError: Where the function is called, for the same reasons as `DAG.validate`.
    """
    if not isinstance(dag_id_or_function, str):
        return _make_dag_factory(dag_id_or_function, "", result_task, options)
    name = dag_id_or_function.strip()
    return lambda function: _make_dag_factory(function, name, result_task, options)


def _make_dag_factory(
    function: DagFunction, name: str, result_tasks: ResultTasks, options: dict[str, Any]
) -> Callable[..., DAG]:
    signature = inspect.signature(function)
    dag_options = {"dag_id": name or function.__name__, **options}

    @wraps(function)
    def make(*args: object, **kwargs: object) -> DAG:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = DAG(**dag_options, result_task=result_tasks)
        with made:
            made.doc_md = made.doc_md or function.__doc__
            made.fileloc = sys._getframe(1).f_code.co_filename  # noqa: SLF001 # as Airflow does
            # A task that is given an argument gets what the run's conf says instead.
            returned = function(**{each: made.param(each, value) for each, value in bound.arguments.items()})
            if is_return_value(returned):
                result_task(returned)
        made.validate()
        return made

    return make
