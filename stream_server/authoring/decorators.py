"""`@result_task` and `@task.result`, which mark a result task at its definition."""

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
from stream_server.authoring.function_source import remove_decorators
from stream_server.authoring.result_marks import Operator, dag_of, error_prefix, format_task_ids, mark_result_task

T = TypeVar("T")

DecoratedTask: TypeAlias = Any
"""A function decorated as a task: Airflow's private `_TaskDecorator`."""

AirflowClass: TypeAlias = Any
"""A class of Airflow, which is not type-checked here."""

RETURN_VALUE = "return_value"
"""XCom key of a return value. The module of Airflow's own constant differs between its versions."""


def result_task(task: T) -> T:
    """Mark a task as a result task: its return value is the result of the run.

    As a decorator, it goes on top of any decorator that creates a task, `@result_task @task def …`, and marks every
    task created from the function, mapped or not. Called with an operator, mapped or not, or with the return value of a
    TaskFlow function in a DAG, it marks that one task. A DAG may have several result tasks.

    Args:
        task: A decorated function, an operator, or a task's return value.

    Returns:
        A marked copy of a decorated function; any other argument itself.

    Raises:
        MisplacedMark: The argument is none of these.
        CannotAnswer: The task never returns a value. For a decorated function, raised when it is called.
        ContradictingMarks: The task's params have `stream_result` set to false.
    """
    if getattr(task, "_airflow_is_task_decorator", False):
        marked: T = _mark_decorator(task)
        return marked
    mark_result_task(operator_of(task))
    return task


def result(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 # as `@task`
    """Create a result task: `@task.result` is `@result_task` on top of `@task`, with the same arguments."""
    if python_callable is not None:
        return result_task(python_task(python_callable, **kwargs))
    decorate = python_task(**kwargs)
    return lambda function: result_task(decorate(function))


def operator_of(task: object) -> Operator:
    """Return the operator itself, or that of a task's return value.

    Raises:
        MisplacedMark: The argument is neither.
    """
    if isinstance(task, (BaseOperator, MappedOperator)):
        return task
    if is_return_value(task):
        return task.operator  # type: ignore[attr-defined]
    raise MisplacedMark(_describe_misplaced_mark(task))


def is_return_value(value: object) -> bool:
    """Whether this is the complete return value of one task, not a part of it."""
    return isinstance(value, PlainXComArg) and value.key == RETURN_VALUE


def _describe_misplaced_mark(task: Any) -> str:  # noqa: ANN401 # anything
    if isinstance(task, OperatorPartial):
        task_id = task.kwargs["task_id"]
        return f"{task_id!r} cannot be a result task: it is not mapped yet. Mark the return value of .expand()."
    if isinstance(task, XComArg):
        operators = [operator for operator, _ in task.iter_references()]
        sources = format_task_ids(operator.task_id for operator in operators)
        return (
            f"{error_prefix(dag_of(operators[0]))}a value derived from the return value of {sources}"
            " cannot be the result. Mark the task itself, or a task that returns the derived value."
        )
    name = getattr(task, "__name__", None) or getattr(getattr(task, "function", None), "__name__", None) or task
    if hasattr(task, "tg_kwargs") or isinstance(task, TaskGroup):
        return f"{name!r} cannot be a result task: it is a task group, which returns no value. Mark a task in it."
    if callable(task):
        return f"{name!r} cannot be a result task: it is not a task. Put @result_task on top of @task."
    return f"{name!r} cannot be a result task. Mark a function decorated with @task, or an operator."


def _mark_decorator(task: DecoratedTask) -> DecoratedTask:
    marked = task.override()
    # A subclass, because decorators on top (@setup, @task.run_if) check for Airflow's class. Set on the instance,
    # because Airflow's own methods (`override`) copy into `self.__class__`.
    marked.__class__ = _marking_decorator_class(task.__class__)
    marked.operator_class = _marking_operator_class(task.operator_class)
    return marked


@cache
def _marking_decorator_class(base: AirflowClass) -> AirflowClass:
    """Return a subclass of Airflow's task decorator that marks each task it creates."""

    def call(self: object, *args: object, **kwargs: object) -> object:
        return result_task(base.__call__(self, *args, **kwargs))

    def expand(self: object, **kwargs: object) -> object:
        return result_task(base.expand(self, **kwargs))

    def expand_kwargs(self: object, *args: object, **kwargs: object) -> object:
        return result_task(base.expand_kwargs(self, *args, **kwargs))

    return _subclass(base, __call__=call, expand=expand, expand_kwargs=expand_kwargs)


@cache
def _marking_operator_class(base: AirflowClass) -> AirflowClass:
    """Return a subclass of an operator that removes `@result_task` from the source it hands to another interpreter."""

    def get_python_source(self: Operator) -> str:
        module_globals = getattr(self.python_callable, "__globals__", {})
        names = {result_task.__name__, *(name for name, value in module_globals.items() if value is result_task)}
        return remove_decorators(base.get_python_source(self), names)

    return _subclass(base, get_python_source=get_python_source)


def _subclass(base: AirflowClass, **methods: object) -> AirflowClass:
    """Return a subclass with the name of its base, because Airflow's UI shows the class names of operators."""
    namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods}
    return types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(namespace))
