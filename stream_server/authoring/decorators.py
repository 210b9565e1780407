"""`@result_task` and `@task.result`: marks that stand at the task itself."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar

from airflow.providers.standard.decorators.python import python_task
from airflow.sdk import BaseOperator, TaskGroup, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from stream_server.authoring.errors import MisplacedMark
from stream_server.authoring.result_marks import Operator, dag_of, error_prefix, format_task_ids, mark_result_task
from stream_server.authoring.source import remove_decorators

T = TypeVar("T")

DecoratedTask: TypeAlias = Any
"""A function decorated as a task: Airflow's private `_TaskDecorator`."""

AirflowClass: TypeAlias = Any
"""A class of Airflow's."""

RETURN_VALUE = "return_value"
"""The key of what a task returns; the constant's place differs between the versions of Airflow."""


def result_task(task: T) -> T:
    """Mark a task as one that answers whoever waits for its DAG.

    Stands on top of any decorator that makes a task, `@result_task @task def …`, and marks every task that is made
    from it, mapped or not. Called with an operator, mapped or not, or with what a TaskFlow function returned when it
    was called in a DAG, it marks that one task. A DAG may have several result tasks.

    Args:
        task: A decorated function, an operator, or a task's return value.

    Returns:
        A marked copy of a decorated function; anything else itself.

    Raises:
        MisplacedMark: It is none of these.
        CannotAnswer: The task never returns a value. For a decorated function, this is raised where it is called.
        ContradictingMarks: The task's params say that it does not answer.
    """
    if getattr(task, "_airflow_is_task_decorator", False):
        answering: T = _mark_decorator(task)
        return answering
    mark_result_task(operator_of(task))
    return task


def result(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 # as `@task`
    """Make a task that answers: `@task.result` is `@result_task` on top of `@task`, and takes the same arguments."""
    if python_callable is not None:
        return result_task(python_task(python_callable, **kwargs))
    decorate = python_task(**kwargs)
    return lambda function: result_task(decorate(function))


def operator_of(task: object) -> Operator:
    """Return the operator that is meant by itself, or by what its task returns.

    Raises:
        MisplacedMark: Nothing of that kind is meant.
    """
    if isinstance(task, (BaseOperator, MappedOperator)):
        return task
    if is_return_value(task):
        return task.operator  # type: ignore[attr-defined]
    raise MisplacedMark(_describe_misplaced_mark(task))


def is_return_value(value: object) -> bool:
    """Whether this is all that one task returns."""
    return isinstance(value, PlainXComArg) and value.key == RETURN_VALUE


def _describe_misplaced_mark(task: Any) -> str:  # noqa: ANN401 # anything
    if isinstance(task, OperatorPartial):
        return f"{task.kwargs['task_id']!r} cannot be a result task: it is not mapped yet. Mark what .expand() returns."
    if isinstance(task, XComArg):
        operators = [operator for operator, _ in task.iter_references()]
        sources = format_task_ids(operator.task_id for operator in operators)
        return (
            f"{error_prefix(dag_of(operators[0]))}what is made of the return value of {sources}"
            " cannot be the result. Mark the task, or one that returns what is wanted."
        )
    name = getattr(task, "__name__", None) or getattr(getattr(task, "function", None), "__name__", None) or task
    if hasattr(task, "tg_kwargs") or isinstance(task, TaskGroup):
        return f"{name!r} cannot be a result task: it is a task group and returns nothing. Mark a task in it."
    if callable(task):
        return f"{name!r} cannot be a result task: it is no task. Put @result_task on top of @task."
    return f"{name!r} cannot be a result task. Mark a function decorated with @task, or an operator."


def _mark_decorator(task: DecoratedTask) -> DecoratedTask:
    marked = task.override()
    # Others test for Airflow's class, such as @setup and @task.run_if on top; its own methods copy into the same class.
    marked.__class__ = _marking_decorator_class(task.__class__)
    marked.operator_class = _marking_operator_class(task.operator_class)
    return marked


@cache
def _marking_decorator_class(base: AirflowClass) -> AirflowClass:
    """Return the class of a decorator whose tasks are marked when they are made."""

    def call(self: object, *args: object, **kwargs: object) -> object:
        return result_task(base.__call__(self, *args, **kwargs))

    def expand(self: object, **kwargs: object) -> object:
        return result_task(base.expand(self, **kwargs))

    def expand_kwargs(self: object, *args: object, **kwargs: object) -> object:
        return result_task(base.expand_kwargs(self, *args, **kwargs))

    return _subclass(base, __call__=call, expand=expand, expand_kwargs=expand_kwargs)


@cache
def _marking_operator_class(base: AirflowClass) -> AirflowClass:
    """Return an operator class that ships its function's source without `@result_task`."""

    def get_python_source(self: Operator) -> str:
        known = getattr(self.python_callable, "__globals__", {})
        names = {result_task.__name__, *(name for name, value in known.items() if value is result_task)}
        return remove_decorators(base.get_python_source(self), names)

    return _subclass(base, get_python_source=get_python_source)


def _subclass(base: AirflowClass, **methods: object) -> AirflowClass:
    """Return a subclass that bears its base's name: Airflow's user interface shows the classes of operators."""
    namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods}
    return types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(namespace))
