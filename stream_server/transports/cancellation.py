"""Stopping runs that nobody waits for any more, where their caller wanted that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from stream_server.errors import StreamServerError
from stream_server.hub import Hub
from stream_server.outcome import Pending, Question, judge
from stream_server.run_state import RunKey

log = logging.getLogger(__name__)


class Cancellations:
    """Runs that will be stopped unless somebody comes back to watch them.

    They are known to this process alone: whoever comes back to another one does not keep a run from being stopped.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._tasks: dict[RunKey, asyncio.Task[None]] = {}

    def schedule(self, key: RunKey, question: Question, cancel: Callable[[], Awaitable[object]], grace: float) -> None:
        """Stop a run after `grace` seconds, if nobody watches it then, and what was asked of it is still open.

        A later call replaces an earlier one.
        """
        if (before := self._tasks.pop(key, None)) is not None:
            before.cancel()
        task = asyncio.create_task(self._cancel(key, question, cancel, grace), name="cancellation")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))

    async def close(self) -> None:
        """Give up: the server stops, and those who come back will find another. The runs go on."""
        tasks = list(self._tasks.values())
        for key in self._tasks:
            log.warning("Run %s goes on: the server stops before its caller's grace was over", key)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cancel(
        self, key: RunKey, question: Question, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        await asyncio.sleep(grace)
        if self._hub.watched(key):
            return
        try:
            if not await self._open(key, question):
                return
            await cancel()
        except StreamServerError as error:
            log.warning("Run %s was left by all who waited for it, and could not be stopped: %s", key, error)
        else:
            log.info("Stopped run %s, which all had left who waited for it", key)

    async def _open(self, key: RunKey, question: Question) -> bool:
        """Tell whether a run has not answered yet, as the database has it: nobody has watched it meanwhile."""
        async with self._hub.watch(key, question):
            run = self._hub.state(key)
            return run is not None and not run.final and isinstance(judge(run, question), Pending)

    def _forget(self, key: RunKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
