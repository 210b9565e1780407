"""What one caller may read of all DAGs, asked as they appear: for streams of many runs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from stream_server.errors import AirflowRefused, PermissionUnknown, StreamServerError
from stream_server.firehose import Reading

RETRY_SECONDS = (1.0, 5.0)
"""Bounds of the random time after which Airflow is asked again, where it did not answer."""

PATIENCE_SECONDS = 10.0
"""How long somebody waits who comes back."""

STALE = 2
"""How many times as long as it is good an answer counts, while it is renewed."""

RENEWED = 10
"""How many times as long as it is good an answer is renewed at most without being asked for itself."""

ASKED = 100
"""How many answers are asked for themselves while one is good, of those that can be renewed in another way."""


KEPT = 10_000
"""Answers that are kept of a caller."""

OF_ALL_DAGS = Reading("~", values=True)
"""What tasks say, whatever their DAG, as paths of Airflow's have it (`requires_access_dag`)."""


class _Known(NamedTuple):
    allowed: bool
    asked_at: float
    """When Airflow was asked about this itself."""

    renewed_at: float


class ReadableDags:
    """Implements `stream_server.firehose.Readable`.

    What is met is asked for itself. Where that would be more than `ASKED`, they take turns, and others are renewed by
    what Airflow's own lists of the runs and XComs of many DAGs go by (`permitted_dag_filter_factory`, and a permission
    that names no DAG): a list of the DAGs that may be read, which costs Airflow about as much as a question about one,
    and whether XComs may be read at all. Whether runs may be is asked by whoever guards the stream.

    Args:
        ask: Asks whether the caller may read something, or `OF_ALL_DAGS`.
        list_dags: Lists the DAGs that he may read.
        good_for: Seconds for which an answer is good. Then it is renewed when its DAG is met next.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[Reading], Awaitable[bool]],
        list_dags: Callable[[], Awaitable[Collection[str]]],
        *,
        good_for: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._list_dags = ask, list_dags
        self._good_for = good_for
        self._clock = clock
        self._known: dict[Reading, _Known] = {}
        self._asking: dict[Reading, asyncio.Task[None]] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._values_of_all = True
        """Whether what tasks say may be read whatever their DAG, so that a list of DAGs renews that, too."""

        self._turns = Turns(good_for)

    def may_read(self, reading: Reading) -> bool | None:
        """Tell whether the caller may read something; `None` where that is to be asked first."""
        known = self._known.get(reading)
        if known is None:
            return None
        now = self._clock()
        if now - known.renewed_at > self._good_for * STALE:
            return None
        if now - known.renewed_at > self._good_for:
            self._begin(reading)
        return known.allowed

    def decide(self, readings: Collection[Reading], then: Callable[[], None]) -> None:
        """Ask about something, and call something when Airflow has answered, or did not: then it can be asked again."""
        waiting = {self._begin(reading) for reading in readings}

        def done(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            if not waiting and not task.cancelled():
                then()

        for task in list(waiting):
            task.add_done_callback(done)

    async def among(self, readings: Collection[Reading]) -> Collection[Reading]:
        """Return what of something the caller may read, when that is known of all.

        Raises:
            PermissionUnknown: Airflow does not answer.
        """
        deadline = self._clock() + PATIENCE_SECONDS
        while None in (rights := {reading: self.may_read(reading) for reading in readings}).values():
            left = deadline - self._clock()
            if left <= 0:
                raise PermissionUnknown("Airflow does not say which DAGs you may read")
            await asyncio.wait([self._begin(reading) for reading, may in rights.items() if may is None], timeout=left)
        return {reading for reading, may in rights.items() if may}

    async def close(self) -> None:
        """Stop asking."""
        tasks = [*self._asking.values(), *([self._renewing] if self._renewing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, reading: Reading) -> asyncio.Task[None]:
        asking = self._asking.get(reading)
        if asking is None:
            asking = self._asking[reading] = asyncio.create_task(self._find_out(reading), name="question about a DAG")
            asking.add_done_callback(lambda _: self._asking.pop(reading, None))
        return asking

    async def _find_out(self, reading: Reading) -> None:
        """Learn whether something may be read, by whatever costs Airflow less.

        Where Airflow does not answer, it comes to its end after a while: whoever still wants to know begins anew.
        """
        try:
            if not await self._is_renewed(reading):
                now = self._clock()
                self._learn(reading, _Known(await self._ask(reading), now, now))
        except StreamServerError:
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))  # noqa: S311 # not for secrets

    def _learn(self, reading: Reading, known: _Known) -> None:
        self._known.pop(reading, None)
        self._known[reading] = known
        if len(self._known) > KEPT:
            # That which was asked for longest ago.
            del self._known[next(iter(self._known))]

    async def _is_renewed(self, reading: Reading) -> bool:
        """Renew what is known by a list, unless it is the turn of this, and tell whether it is known now."""
        known = self._known.get(reading)
        if known is None:
            return False
        now = self._clock()
        if self._turns.take(known.asked_at, now) or now - known.asked_at > self._good_for * RENEWED:
            return False
        if reading.values and known.allowed and not self._values_of_all:
            return False
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="list of DAGs")
            self._renewing.add_done_callback(self._renewed)
        # Those who wait for the same list share it.
        await asyncio.shield(self._renewing)
        known = self._known.get(reading)
        return known is not None and self._clock() - known.renewed_at <= self._good_for

    async def _renew(self) -> None:
        now = self._clock()
        try:
            listed = await self._list_dags()
        except AirflowRefused:
            # Who may not list DAGs may read some all the same, each of which is asked for itself.
            return
        if any(reading.values for reading in self._known):
            self._values_of_all = await self._ask(OF_ALL_DAGS)
        for reading, known in list(self._known.items()):
            if not known.allowed:
                # Though its DAG be listed now: it waits for its turn.
                self._known[reading] = known._replace(renewed_at=now)
            elif reading.dag_id not in listed:
                del self._known[reading]
            elif self._values_of_all or not reading.values:
                self._known[reading] = known._replace(renewed_at=now)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewing = None
        if not task.cancelled():
            # Seen, also where nobody waits any more.
            task.exception()


class Turns:
    """Has no more than `ASKED` answers asked for themselves while one is good, those first that it was longest ago for.

    Args:
        good_for: Seconds for which an answer is good.
    """

    def __init__(self, good_for: float) -> None:
        self._good_for = good_for
        self._began_at = float("-inf")
        self._met: list[float] = []
        """When all that had an answer renewed in this round were asked for last."""

        self._before = float("inf")
        """Of whatever was asked for later it is not the turn."""

        self._taken = 0

    def take(self, asked_at: float, now: float) -> bool:
        """Tell whether it is the turn of something that was asked for at a time."""
        if now - self._began_at >= self._good_for:
            self._before = sorted(self._met)[ASKED - 1] if len(self._met) > ASKED else float("inf")
            self._began_at, self._met, self._taken = now, [], 0
        takes = self._taken < ASKED and asked_at <= self._before
        self._taken += takes
        self._met.append(now if takes else asked_at)
        return takes
