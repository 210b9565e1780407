"""Which DAGs one caller may read, asked as they appear: for streams of many runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from stream_server.errors import AirflowRefused, PermissionUnknown, StreamServerError

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 5.0)
"""Bounds of the random time after which Airflow is asked again, where it did not answer."""

PATIENCE_SECONDS = 10.0
"""How long somebody waits who comes back."""

STALE = 2
"""How many times as long as it is good an answer counts, while it is renewed."""

RENEWED = 10
"""How many times as long as it is good an answer can be renewed by a list of DAGs, before it is asked for itself."""


class _Known(NamedTuple):
    allowed: bool
    asked_at: float
    """When Airflow was asked about this DAG itself."""

    renewed_at: float


class ReadableDags:
    """Implements `stream_server.firehose.Readable`.

    Each DAG is asked for when it is met first. Later one list of all DAGs renews what is known: it costs Airflow about
    as much as a question about a single one, but says less: which DAGs may be read, and not the runs of which.

    Args:
        ask: Asks whether the caller may read the runs of a DAG.
        list_dags: Lists the DAGs that he may read.
        good_for: Seconds for which an answer is good. Then it is renewed when the DAG is met next.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[bool]],
        list_dags: Callable[[], Awaitable[Collection[str]]],
        *,
        good_for: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._list_dags = ask, list_dags
        self._good_for = good_for
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._renewing: asyncio.Task[None] | None = None

    def may_read(self, dag_id: str) -> bool | None:
        """Tell whether the caller may read a DAG; `None` where that is to be asked first."""
        known = self._known.get(dag_id)
        if known is None:
            return None
        now = self._clock()
        if now - known.renewed_at > self._good_for * STALE:
            return None
        if now - known.renewed_at > self._good_for:
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
        tasks = [*self._asking.values(), *([self._renewing] if self._renewing is not None else [])]
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
        """Learn about a DAG, by whatever costs Airflow less; it is asked until it answers."""
        while True:
            try:
                if not await self._is_renewed(dag_id):
                    now = self._clock()
                    self._known[dag_id] = _Known(await self._ask(dag_id), now, now)
            except StreamServerError as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(random.uniform(*RETRY_SECONDS))  # noqa: S311 # not for secrets
            else:
                return

    async def _is_renewed(self, dag_id: str) -> bool:
        """Renew all that is known, if this DAG is among that, and tell whether it is known now."""
        known = self._known.get(dag_id)
        if known is None or self._clock() - known.asked_at > self._good_for * RENEWED:
            return False
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="list of DAGs")
            self._renewing.add_done_callback(self._renewed)
        # Those who wait for the same list share it.
        await asyncio.shield(self._renewing)
        known = self._known.get(dag_id)
        return known is not None and self._clock() - known.renewed_at <= self._good_for

    async def _renew(self) -> None:
        now = self._clock()
        try:
            listed = await self._list_dags()
        except AirflowRefused:
            # Who may not list DAGs may read some all the same.
            self._known.clear()
            return
        for dag_id, known in list(self._known.items()):
            if known.allowed == (dag_id in listed):
                self._known[dag_id] = known._replace(renewed_at=now)
            else:
                del self._known[dag_id]

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewing = None
        if not task.cancelled():
            # Seen, also where nobody waits any more.
            task.exception()
