"""`@task.stream`: a task whose function yields, so that those who watch its run read along."""

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
    """Runs a generator function, and streams what it yields."""

    custom_operator_name = "@task.stream"

    def execute(self, context: Any) -> Any:  # noqa: ANN401 # Airflow's
        """Run the function to its end, and return what the task returns."""
        function: Callable[..., Any] = self.python_callable  # type: ignore[has-type]
        self.python_callable = _emit_yielded(function)
        try:
            return super().execute(context)
        finally:
            self.python_callable = function
            finish()


def stream(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,  # as Airflow calls it
    **kwargs: Any,  # noqa: ANN401 # Airflow's
) -> Any:  # noqa: ANN401 # as `@task`
    """Make a task of a generator function, plain or `async`, or of one that returns an iterator: `@task.stream`.

    What it yields reaches those who watch as `chunk` frames while it runs. The task returns what the function returns;
    where that is nothing and it has yielded nothing but text, the whole text.

    Args:
        python_callable: The function.
        multiple_outputs: As for `@task`, and so is everything else.
        kwargs: For the operator.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=StreamOperator,
        **kwargs,
    )


def _emit_yielded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that says what the other one yields, and returns what the task shall return."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        made = function(*args, **kwargs)
        if isinstance(made, AsyncIterable):
            return asyncio.run(_emit_all_async(made))
        if isinstance(made, Iterable) and not isinstance(made, (str, bytes, Mapping)):
            return _emit_all(made)
        raise NothingToStream(
            f"{function.__name__!r} returned {type(made).__name__}, which yields nothing; a function under @task.stream"
            " must yield, or return an iterator. Use @task for one that does not."
        )

    return run


class _TextCollector:
    """All that was yielded, as far as it is text."""

    def __init__(self) -> None:
        self._parts: list[str] | None = []

    def add(self, value: object) -> None:
        emit(value)
        if self._parts is not None and isinstance(value, str):
            self._parts.append(value)
        else:
            self._parts = None

    @property
    def text(self) -> str | None:
        return "".join(self._parts) if self._parts else None


def _emit_all(made: Iterable[object]) -> object:
    whole, iterator = _TextCollector(), iter(made)
    while True:
        try:
            whole.add(next(iterator))
        except StopIteration as stop:
            return whole.text if stop.value is None else stop.value


async def _emit_all_async(made: AsyncIterable[object]) -> object:
    whole = _TextCollector()
    async for value in made:
        whole.add(value)
    return whole.text
