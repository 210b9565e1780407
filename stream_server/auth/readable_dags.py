"""What one caller may read of all DAGs, looked up as DAGs appear: for streams of many runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import NamedTuple

from cachetools import FIFOCache

from stream_server.errors import AirflowRefused, PermissionUnknown, StreamServerError
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.filters import Resource

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (1.0, 10.0)
"""First and longest pause after a look-up that failed; it doubles each time, with jitter."""

MAX_WAIT_SECONDS = 10.0
"""How long a resuming client waits for permissions."""

STALE_FACTOR = 2
"""An answer is used for so many times its validity, while it is renewed."""

MAX_RENEWAL_FACTOR = 10
"""An answer is renewed by lists for so many times its validity. Then it is requested directly."""

MAX_DIRECT_REQUESTS = 100
"""Direct requests in one period of validity, of answers that a list can renew too."""

MAX_ANSWERS = 10_000
"""Answers that are kept for a caller. The oldest are dropped first."""

OUTPUT_OF_ALL_DAGS = Resource("~", output=True)
"""Output whatever the DAG, in the form that paths of Airflow's API have (`requires_access_dag`)."""


class _Answer(NamedTuple):
    allowed: bool
    requested_at: float
    """When Airflow was asked about this resource itself."""

    renewed_at: float


class ReadableDags:
    """Implements `stream_server.hub.firehose.ReadPermissions`.

    Each resource is requested directly when it is first met. Where there are more than `MAX_DIRECT_REQUESTS`, they take
    turns, and the others are renewed by what Airflow's own lists of the runs and XComs of many DAGs use
    (`permitted_dag_filter_factory`, and a permission that names no DAG): a list of the DAGs that may be read, which
    costs Airflow about as much as a request for one DAG, and whether XComs may be read at all. Whether runs may be read
    at all is revalidated for each stream (`revalidation.py`). Human input is always requested directly.

    Args:
        ask: Requests whether the caller may read something, or `OUTPUT_OF_ALL_DAGS`.
        list_dags: Lists the DAGs that the caller may read.
        good_for: Seconds for which an answer is valid. Then it is renewed when its DAG is met next.
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
        self._answers: FIFOCache[Resource, _Answer] = FIFOCache(MAX_ANSWERS)
        # Seconds of the last pause, by look-up (`None` for the list), if it has failed since its last success.
        self._pauses: FIFOCache[Resource | None, float] = FIFOCache(MAX_ANSWERS)
        self._tasks = TaskSet("permission look-up")
        self._requests: dict[Resource, asyncio.Task[None]] = {}
        self._renewal: asyncio.Task[bool] | None = None
        self._can_read_all_output = True
        """Whether output may be read whatever the DAG, so that a list of DAGs renews that too."""

        self._quota = DirectRequestQuota(good_for)

    def may_read(self, resource: Resource) -> bool | None:
        """Whether the caller may read something; `None` if that is not known."""
        answer = self._answers.get(resource)
        if answer is None:
            return None
        age = self._clock() - answer.renewed_at
        if age > self._good_for * STALE_FACTOR:
            return None
        if age > self._good_for:
            self._start_request(resource)
        return answer.allowed

    def request_decision(self, resources: Collection[Resource], then: Callable[[], None]) -> None:
        """Look up resources. `then` is called when all look-ups have ended, also without an answer."""
        waiting = {self._start_request(resource) for resource in resources}

        def finish(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            if not waiting and not task.cancelled():
                then()

        for task in list(waiting):
            task.add_done_callback(finish)

    async def filter_readable(self, resources: Collection[Resource]) -> Collection[Resource]:
        """Return which of some resources the caller may read, once that is known of all.

        Raises:
            PermissionUnknown: Airflow does not answer.
        """
        deadline = self._clock() + MAX_WAIT_SECONDS
        while None in (permissions := {resource: self.may_read(resource) for resource in resources}).values():
            left = deadline - self._clock()
            if left <= 0:
                raise PermissionUnknown("Airflow does not answer which DAGs you may read")
            unknown = [resource for resource, may_read in permissions.items() if may_read is None]
            await asyncio.wait([self._start_request(resource) for resource in unknown], timeout=left)
        return {resource for resource, may_read in permissions.items() if may_read}

    async def close(self) -> None:
        """Cancel all look-ups."""
        await self._tasks.aclose()

    def _start_request(self, resource: Resource) -> asyncio.Task[None]:
        request = self._requests.get(resource)
        if request is None:
            request = self._requests[resource] = self._tasks.start(self._request(resource))
            request.add_done_callback(lambda _: self._requests.pop(resource, None))
        return request

    async def _request(self, resource: Resource) -> None:
        """Look up a resource, by whatever costs Airflow less.

        If a look-up fails, this ends without an answer, after a pause. It can be started again then.
        """
        if self._is_renewed_by_list(resource):
            if self._renewal is None:
                self._renewal = self._tasks.start(self._attempt(None, self._renew_all), "by a list")
                self._renewal.add_done_callback(self._on_renewed)
            # All resources that wait for the list share it, and the pause after it.
            has_list = await asyncio.shield(self._renewal)
            if not has_list or self._is_valid(resource):
                return
        await self._attempt(resource, partial(self._fetch, resource))

    async def _attempt(self, subject: Resource | None, look_up: Callable[[], Awaitable[None]]) -> bool:
        """Make a look-up, and pause if it fails. Return whether it has succeeded.

        An unexpected exception counts as a failure too: without a pause the look-up would be repeated at once.
        """
        try:
            await look_up()
        except Exception as error:
            if not isinstance(error, StreamServerError) and not self._pauses:
                # The first in a row only. Errors of our own are logged where they are raised.
                log.exception("A look-up of permissions has failed", extra={"action": "lookup_failed"})
            await self._sleep(self._next_pause(subject) * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets
            return False
        self._pauses.pop(subject, None)
        return True

    def _next_pause(self, subject: Resource | None) -> float:
        first, longest = BACKOFF_SECONDS
        last = self._pauses.get(subject)
        pause = self._pauses[subject] = first if last is None else min(2 * last, longest)
        return pause

    async def _fetch(self, resource: Resource) -> None:
        now = self._clock()
        self._answers[resource] = _Answer(await self._check(resource), now, now)

    def _is_renewed_by_list(self, resource: Resource) -> bool:
        """Whether a list can renew what is known of a resource, and the resource is not to be requested directly."""
        answer = self._answers.get(resource)
        if answer is None or resource.inputs:
            return False
        now = self._clock()
        is_too_old = now - answer.requested_at > self._good_for * MAX_RENEWAL_FACTOR
        if self._quota.try_take(answer.requested_at, now) or is_too_old:
            return False
        return self._can_read_all_output or not (resource.output and answer.allowed)

    def _is_valid(self, resource: Resource) -> bool:
        answer = self._answers.get(resource)
        return answer is not None and self._clock() - answer.renewed_at <= self._good_for

    async def _renew_all(self) -> None:
        now = self._clock()
        try:
            listed = await self._list_dags()
        except AirflowRefused:
            # A caller that may not list DAGs may still read some. Each of them is requested directly.
            return
        if any(resource.output for resource in self._answers):
            self._can_read_all_output = await self._check(OUTPUT_OF_ALL_DAGS)
        for resource, answer in list(self._answers.items()):
            if not answer.allowed:
                # Also if its DAG is listed now: that shows at its next direct request.
                self._answers[resource] = answer._replace(renewed_at=now)
            elif resource.dag_id not in listed:
                del self._answers[resource]
            elif not resource.inputs and (self._can_read_all_output or not resource.output):
                self._answers[resource] = answer._replace(renewed_at=now)

    def _on_renewed(self, _task: asyncio.Task[bool]) -> None:
        self._renewal = None


class DirectRequestQuota:
    """Permits `MAX_DIRECT_REQUESTS` direct requests in each period of validity, for the oldest answers first.

    Args:
        good_for: Seconds for which an answer is valid.
    """

    def __init__(self, good_for: float) -> None:
        self._good_for = good_for
        self._round_started_at = float("-inf")
        # When all answers that were renewed in this round had been requested last.
        self._requested_at: list[float] = []
        self._oldest_before = float("inf")
        """Answers that were requested later are not permitted in this round."""

        self._taken = 0

    def try_take(self, requested_at: float, now: float) -> bool:
        """Permit a direct request, or not, for an answer that was requested last at a time."""
        if now - self._round_started_at >= self._good_for:
            met = sorted(self._requested_at)
            self._oldest_before = met[MAX_DIRECT_REQUESTS - 1] if len(met) > MAX_DIRECT_REQUESTS else float("inf")
            self._round_started_at, self._requested_at, self._taken = now, [], 0
        takes = self._taken < MAX_DIRECT_REQUESTS and requested_at <= self._oldest_before
        self._taken += takes
        self._requested_at.append(now if takes else requested_at)
        return takes
