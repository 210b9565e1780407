"""What one caller may read of all DAGs, asked as they appear: for streams of many runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import NamedTuple

from stream_server.errors import AirflowRefused, PermissionUnknown, StreamServerError
from stream_server.hub.firehose import Reading

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (1.0, 10.0)
"""First and longest pause after a look-up that failed; it doubles each time, with jitter."""

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
        max_wait: Seconds for which transitions may wait for an answer.
        clock: Returns the time in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        ask: Callable[[Reading], Awaitable[bool]],
        list_dags: Callable[[], Awaitable[Collection[str]]],
        *,
        good_for: float,
        max_wait: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask, self._list_dags = ask, list_dags
        self._good_for = good_for
        self.max_wait = max_wait
        self._clock, self._sleep = clock, sleep
        self._known: dict[Reading, _Known] = {}
        self._pauses: dict[Reading | None, float] = {}
        """Seconds of the last pause, by look-up (`None` for the list), where it has failed since its last success."""

        self._asking: dict[Reading, asyncio.Task[None]] = {}
        self._renewing: asyncio.Task[bool] | None = None
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

        Ends without an answer, after a pause, where a look-up fails: whoever still wants to know begins anew.
        """
        if self._is_renewed_by_list(reading):
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._attempt(None, self._renew), name="list of DAGs")
                self._renewing.add_done_callback(self._renewed)
            # Those who wait for the same list share it, and the pause after it.
            has_list = await asyncio.shield(self._renewing)
            if not has_list or self._is_good(reading):
                return
        await self._attempt(reading, partial(self._ask_for, reading))

    async def _attempt(self, subject: Reading | None, look_up: Callable[[], Awaitable[None]]) -> bool:
        """Make a look-up, and pause where it fails. Return whether it has succeeded.

        An exception that nothing here expects counts as a failure, too: without a pause it would be repeated at once.
        """
        try:
            await look_up()
        except Exception as error:
            if not isinstance(error, StreamServerError) and not self._pauses:
                # The first in a row only. Errors of our own are logged by the one that asks.
                log.exception("A look-up of permissions has failed", extra={"action": "lookup_failed"})
            await self._sleep(self._next_pause(subject) * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets
            return False
        self._pauses.pop(subject, None)
        return True

    def _next_pause(self, subject: Reading | None) -> float:
        first, longest = BACKOFF_SECONDS
        last = self._pauses.pop(subject, None)
        pause = first if last is None else min(2 * last, longest)
        self._pauses[subject] = pause
        if len(self._pauses) > KEPT:
            # The one that failed longest ago.
            del self._pauses[next(iter(self._pauses))]
        return pause

    async def _ask_for(self, reading: Reading) -> None:
        now = self._clock()
        self._learn(reading, _Known(await self._ask(reading), now, now))

    def _learn(self, reading: Reading, known: _Known) -> None:
        self._known.pop(reading, None)
        self._known[reading] = known
        if len(self._known) > KEPT:
            # That which was asked for longest ago.
            del self._known[next(iter(self._known))]

    def _is_renewed_by_list(self, reading: Reading) -> bool:
        """Whether a list can renew what is known of something, and it is not its turn to be asked for itself."""
        known = self._known.get(reading)
        if known is None:
            return False
        now = self._clock()
        if self._turns.take(known.asked_at, now) or now - known.asked_at > self._good_for * RENEWED:
            return False
        return self._values_of_all or not (reading.values and known.allowed)

    def _is_good(self, reading: Reading) -> bool:
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

    def _renewed(self, _task: asyncio.Task[bool]) -> None:
        self._renewing = None


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
