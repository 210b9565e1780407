"""Ownership of asyncio tasks.

It is in `hub` because that is the lowest layer that starts tasks. `auth`, `http` and `server` may import `hub`, and
`journal` starts none. The layers below `hub` do no I/O and must not import asyncio; a loose module would make the top
level longer for one class.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from stream_server.errors import StreamServerError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class TaskSet:
    """The running tasks of one owner.

    It holds a reference to each task, because asyncio holds only weak ones. It logs the exception of each task: a
    `StreamServerError` at level debug, because the code that awaits the task handles it, and any other one as an error.

    Args:
        name: Name of the tasks, or prefix of their names.
        on_end: Called with each task that ends before `aclose`, with or without an exception.
    """

    def __init__(self, name: str, *, on_end: Callable[[asyncio.Task[Any]], object] | None = None) -> None:
        self._name = name
        self._on_end = on_end
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(list(self._tasks))

    def start(self, work: Coroutine[Any, Any, _T], name: str = "") -> asyncio.Task[_T]:
        """Start a task. It is not awaited: its result is in the returned task."""
        task = asyncio.create_task(work, name=f"{self._name} {name}" if name else self._name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def join(self) -> None:
        """Wait until no task is left, also those that start meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        self._is_closing = True
        for task in self:
            task.cancel()
        await self.join()

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            level = logging.DEBUG if isinstance(error, StreamServerError) else logging.ERROR
            log.log(level, "Task %s failed", task.get_name(), exc_info=error)
        if self._on_end is not None and not self._is_closing:
            self._on_end(task)
