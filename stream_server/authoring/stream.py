"""`@task.stream`: a task whose function yields values that clients receive while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from airflow.providers.standard.decorators.python import _PythonDecoratedOperator
from airflow.sdk.bases.decorator import task_decorator_factory

from stream_server.authoring.errors import NothingToStream
from stream_server.authoring.output import emit, finish


class StreamOperator(_PythonDecoratedOperator):  # type: ignore[misc] # Airflow is not type-checked here
    """Runs a generator function and emits each value it yields."""

    custom_operator_name = "@task.stream"

    def execute(self, context: Any) -> Any:  # noqa: ANN401 # Airflow's
        """Run the function to its end and return the task's return value."""
        function: Callable[..., Any] = self.python_callable  # type: ignore[has-type]
        self.python_callable = _emit_yielded(function)
        try:
            return super().execute(context)
        finally:
            self.python_callable = function
            finish()


def stream(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,  # positional in Airflow, too
    **kwargs: Any,  # noqa: ANN401 # Airflow's
) -> Any:  # noqa: ANN401 # as `@task`
    """Create a task from a plain or `async` generator function, or from a function that returns an iterator.

    Clients receive the yielded values in `chunk` frames while the task runs. The task returns the function's return
    value. If that is `None` and all yielded values are text, the task returns their concatenation.

    Args:
        python_callable: The function.
        multiple_outputs: As for `@task`.
        kwargs: All other arguments of `@task`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=StreamOperator,
        **kwargs,
    )


def _emit_yielded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that emits the values yielded by `function` and returns the task's return value."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        returned = function(*args, **kwargs)
        if isinstance(returned, AsyncIterable):
            return asyncio.run(_emit_all_async(returned))
        if isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping)):
            return _emit_all(returned)
        raise NothingToStream(
            f"{function.__name__!r} returned {type(returned).__name__}; a function under @task.stream must yield, or"
            " return an iterator. Use @task for other functions."
        )

    return run


class _TextCollector:
    """Emits values and concatenates them as long as all of them are text."""

    def __init__(self) -> None:
        self._parts: list[str] | None = []

    def emit(self, value: object) -> None:
        emit(value)
        if self._parts is not None and isinstance(value, str):
            self._parts.append(value)
        else:
            self._parts = None

    @property
    def text(self) -> str | None:
        return "".join(self._parts) if self._parts else None


def _emit_all(values: Iterable[object]) -> object:
    collector, iterator = _TextCollector(), iter(values)
    while True:
        try:
            collector.emit(next(iterator))
        except StopIteration as stop:
            return collector.text if stop.value is None else stop.value


async def _emit_all_async(values: AsyncIterable[object]) -> object:
    collector = _TextCollector()
    async for value in values:
        collector.emit(value)
    return collector.text
