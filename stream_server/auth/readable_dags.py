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
from stream_server.hub.firehose import Resource

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (1.0, 10.0)
"""First and longest pause after a look-up that failed; it doubles each time, with jitter."""

MAX_WAIT_SECONDS = 10.0
"""How long somebody waits who comes back."""

STALE_FACTOR = 2
"""How many times as long as it is good an answer counts, while it is renewed."""

MAX_RENEWAL_FACTOR = 10
"""How many times as long as it is good an answer is renewed at most without being asked for itself."""

MAX_DIRECT_REQUESTS = 100
"""How many answers are asked for themselves while one is good, of those that can be renewed in another way."""


MAX_ANSWERS = 10_000
"""Answers that are kept of a caller."""

OUTPUT_OF_ALL_DAGS = Resource("~", output=True)
"""What tasks say, whatever their DAG, as paths of Airflow's have it (`requires_access_dag`)."""


class _Answer(NamedTuple):
    allowed: bool
    requested_at: float
    """When Airflow was asked about this itself."""

    renewed_at: float


class ReadableDags:
    """Implements `stream_server.firehose.Readable`.

    A DAG that a transition names is checked by a request of its own, at most `MAX_DIRECT_REQUESTS` of them at a
    time. Beyond that, DAGs take turns, and the others are renewed from Airflow's list of readable DAGs and one
    check of XComs. Airflow's own lists of the runs and XComs of many DAGs follow the same rule
    (`permitted_dag_filter_factory`, and a permission that names no DAG). The list costs Airflow about as much as a
    check of one DAG. The revalidation of the stream checks whether runs may be read.

    Args:
        ask: Asks whether the caller may read something, or `OUTPUT_OF_ALL_DAGS`.
        list_dags: Lists the DAGs that he may read.
        good_for: Seconds for which an answer is good. Then it is renewed when its DAG is met next.
        max_wait: Seconds for which transitions may wait for an answer.
        clock: Returns the time in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        ask: Callable[[Resource], Awaitable[bool]],
        list_dags: Callable[[], Awaitable[Collection[str]]],
        *,
        good_for: float,
        max_wait: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._check, self._list_dags = ask, list_dags
        self._good_for = good_for
        self.max_wait = max_wait
        self._clock, self._sleep = clock, sleep
        self._answers: dict[Resource, _Answer] = {}
        self._pauses: dict[Resource | None, float] = {}
        """Seconds of the last pause, by look-up (`None` for the list), where it has failed since its last success."""

        self._requests: dict[Resource, asyncio.Task[None]] = {}
        self._renewal: asyncio.Task[bool] | None = None
        self._can_read_all_output = True
        """Whether what tasks say may be read whatever their DAG, so that a list of DAGs renews that, too."""

        self._quota = DirectRequestQuota(good_for)

    def may_read(self, reading: Resource) -> bool | None:
        """Tell whether the caller may read something; `None` where that is to be asked first."""
        known = self._answers.get(reading)
        if known is None:
            return None
        now = self._clock()
        if now - known.renewed_at > self._good_for * STALE_FACTOR:
            return None
        if now - known.renewed_at > self._good_for:
            self._start_request(reading)
        return known.allowed

    def request_decision(self, readings: Collection[Resource], then: Callable[[], None]) -> None:
        """Ask about something, and call something when Airflow has answered, or did not: then it can be asked again."""
        waiting = {self._start_request(reading) for reading in readings}

        def done(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            if not waiting and not task.cancelled():
                then()

        for task in list(waiting):
            task.add_done_callback(done)

    async def filter_readable(self, readings: Collection[Resource]) -> Collection[Resource]:
        """Return what of something the caller may read, when that is known of all.

        Raises:
            PermissionUnknown: Airflow does not answer.
        """
        deadline = self._clock() + MAX_WAIT_SECONDS
        while None in (rights := {reading: self.may_read(reading) for reading in readings}).values():
            left = deadline - self._clock()
            if left <= 0:
                raise PermissionUnknown("Airflow does not say which DAGs you may read")
            await asyncio.wait(
                [self._start_request(reading) for reading, may in rights.items() if may is None], timeout=left
            )
        return {reading for reading, may in rights.items() if may}

    async def close(self) -> None:
        """Stop asking."""
        tasks = [*self._requests.values(), *([self._renewal] if self._renewal is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_request(self, reading: Resource) -> asyncio.Task[None]:
        asking = self._requests.get(reading)
        if asking is None:
            asking = self._requests[reading] = asyncio.create_task(self._request(reading), name="question about a DAG")
            asking.add_done_callback(lambda _: self._requests.pop(reading, None))
        return asking

    async def _request(self, reading: Resource) -> None:
        """Learn whether something may be read, by whatever costs Airflow less.

        Ends without an answer, after a pause, where a look-up fails: whoever still wants to know begins anew.
        """
        if self._is_renewed_by_list(reading):
            if self._renewal is None:
                self._renewal = asyncio.create_task(self._attempt(None, self._renew_all), name="list of DAGs")
                self._renewal.add_done_callback(self._on_renewed)
            # Those who wait for the same list share it, and the pause after it.
            has_list = await asyncio.shield(self._renewal)
            if not has_list or self._is_good(reading):
                return
        await self._attempt(reading, partial(self._ask_for, reading))

    async def _attempt(self, subject: Resource | None, look_up: Callable[[], Awaitable[None]]) -> bool:
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

    def _next_pause(self, subject: Resource | None) -> float:
        first, longest = BACKOFF_SECONDS
        last = self._pauses.pop(subject, None)
        pause = first if last is None else min(2 * last, longest)
        self._pauses[subject] = pause
        if len(self._pauses) > MAX_ANSWERS:
            # The one that failed longest ago.
            del self._pauses[next(iter(self._pauses))]
        return pause

    async def _ask_for(self, reading: Resource) -> None:
        now = self._clock()
        self._store(reading, _Answer(await self._check(reading), now, now))

    def _store(self, reading: Resource, known: _Answer) -> None:
        self._answers.pop(reading, None)
        self._answers[reading] = known
        if len(self._answers) > MAX_ANSWERS:
            # That which was asked for longest ago.
            del self._answers[next(iter(self._answers))]

    def _is_renewed_by_list(self, reading: Resource) -> bool:
        """Whether a list can renew what is known of something, and it is not its turn to be asked for itself."""
        known = self._answers.get(reading)
        if known is None:
            return False
        now = self._clock()
        if (
            self._quota.try_take(known.requested_at, now)
            or now - known.requested_at > self._good_for * MAX_RENEWAL_FACTOR
        ):
            return False
        return self._can_read_all_output or not (reading.output and known.allowed)

    def _is_good(self, reading: Resource) -> bool:
        known = self._answers.get(reading)
        return known is not None and self._clock() - known.renewed_at <= self._good_for

    async def _renew_all(self) -> None:
        now = self._clock()
        try:
            listed = await self._list_dags()
        except AirflowRefused:
            # Who may not list DAGs may read some all the same, each of which is asked for itself.
            return
        if any(reading.output for reading in self._answers):
            self._can_read_all_output = await self._check(OUTPUT_OF_ALL_DAGS)
        for reading, known in list(self._answers.items()):
            if not known.allowed:
                # Though its DAG be listed now: it waits for its turn.
                self._answers[reading] = known._replace(renewed_at=now)
            elif reading.dag_id not in listed:
                del self._answers[reading]
            elif self._can_read_all_output or not reading.output:
                self._answers[reading] = known._replace(renewed_at=now)

    def _on_renewed(self, _task: asyncio.Task[bool]) -> None:
        self._renewal = None


class DirectRequestQuota:
    """Has at most `MAX_DIRECT_REQUESTS` answers requested one by one while one is good, the oldest first.

    Args:
        good_for: Seconds for which an answer is good.
    """

    def __init__(self, good_for: float) -> None:
        self._good_for = good_for
        self._round_started_at = float("-inf")
        self._requested_at: list[float] = []
        """When all that had an answer renewed in this round were asked for last."""

        self._oldest_before = float("inf")
        """Of whatever was asked for later it is not the turn."""

        self._taken = 0

    def try_take(self, asked_at: float, now: float) -> bool:
        """Tell whether it is the turn of something that was asked for at a time."""
        if now - self._round_started_at >= self._good_for:
            self._oldest_before = (
                sorted(self._requested_at)[MAX_DIRECT_REQUESTS - 1]
                if len(self._requested_at) > MAX_DIRECT_REQUESTS
                else float("inf")
            )
            self._round_started_at, self._requested_at, self._taken = now, [], 0
        takes = self._taken < MAX_DIRECT_REQUESTS and asked_at <= self._oldest_before
        self._taken += takes
        self._requested_at.append(now if takes else asked_at)
        return takes
