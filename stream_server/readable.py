"""Which DAGs one caller may read, asked as they appear: for streams of many runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from stream_server.errors import PermissionUnknown, StreamServerError

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 5.0)
"""Bounds of the random time after which Airflow is asked again, where it did not answer."""

PATIENCE_SECONDS = 10.0
"""How long somebody waits who comes back."""

STALE = 2
"""How many times as long as it is good an answer counts, while it is asked for again."""


class _Known(NamedTuple):
    allowed: bool
    asked_at: float


class ReadableDags:
    """Implements `stream_server.firehose.Readable`.

    Args:
        ask: Asks whether the caller may read the runs of a DAG.
        good_for: Seconds for which an answer is good. Then it is asked for again when the DAG is met next.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, ask: Callable[[str], Awaitable[bool]], *, good_for: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._good_for = good_for
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def may_read(self, dag_id: str) -> bool | None:
        """Tell whether the caller may read a DAG; `None` where that is to be asked first."""
        known = self._known.get(dag_id)
        if known is None:
            return None
        age = self._clock() - known.asked_at
        if age > self._good_for * STALE:
            return None
        if age > self._good_for:
            self._begin(dag_id)
        return known.allowed

    def decide(self, dag_ids: Collection[str], then: Callable[[], None]) -> None:
        """Ask about DAGs, and call something when all is known. Airflow is asked until it answers."""
        waiting = {self._begin(dag_id) for dag_id in dag_ids}

        def done(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            if not waiting and not task.cancelled():
                then()

        for task in list(waiting):
            task.add_done_callback(done)

    async def among(self, dag_ids: Collection[str]) -> Collection[str]:
        """Return which of some DAGs the caller may read, when that is known of all.

        Raises:
            PermissionUnknown: Airflow does not answer.
        """
        deadline = self._clock() + PATIENCE_SECONDS
        while None in (rights := {dag_id: self.may_read(dag_id) for dag_id in dag_ids}).values():
            left = deadline - self._clock()
            if left <= 0:
                raise PermissionUnknown("Airflow does not say which DAGs you may read")
            await asyncio.wait([self._begin(dag_id) for dag_id, may in rights.items() if may is None], timeout=left)
        return {dag_id for dag_id, may in rights.items() if may}

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, dag_id: str) -> asyncio.Task[None]:
        asking = self._asking.get(dag_id)
        if asking is None:
            asking = self._asking[dag_id] = asyncio.create_task(self._find_out(dag_id), name="question about a DAG")
            asking.add_done_callback(lambda _: self._asking.pop(dag_id, None))
        return asking

    async def _find_out(self, dag_id: str) -> None:
        while True:
            asked_at = self._clock()
            try:
                self._known[dag_id] = _Known(await self._ask(dag_id), asked_at)
            except StreamServerError as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(random.uniform(*RETRY_SECONDS))  # noqa: S311 # not for secrets
            else:
                return
