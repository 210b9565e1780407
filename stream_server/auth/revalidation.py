"""Revalidation: live streams end when their caller may not see them any more.

Streams of one caller that depend on the same answer form a group, and Airflow is asked once for all of them. One loop
checks all groups: there is neither a task nor a timer for each client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timezone
from typing import TypeAlias

from stream_server.auth.airflow_api import UNAUTHENTICATED
from stream_server.auth.authorizer import Access, Caller, Grant, OnTokenExpiring, StreamScope
from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode

log = logging.getLogger(__name__)

WARNING_SECONDS = 60.0
"""How long before a token expires its clients are warned."""

RETRY_SECONDS = 5.0
"""Longest pause before Airflow is asked again that did not answer."""

CHECKS_PER_INTERVAL = 16
"""How often all groups are checked in an interval."""

FIRST_DELAY, LATER_DELAY = (0.25, 0.5), (0.75, 1.0)
"""Bounds of the random part of an interval after which a group is revalidated. The first time is earlier, because the
first answer may come from the cache."""

MAX_CONCURRENT_CHECKS = 8
"""Groups that are revalidated at once. New callers do not wait behind all groups that are due."""

GROUPS_PER_TURN = 500
"""Groups that are checked in one turn of the event loop."""

RECONNECT_DELAY_MS = (0, 3000)
"""Bounds of the random delay after which clients reconnect."""

CheckAccess: TypeAlias = Callable[[Caller, StreamScope], Awaitable[Access]]
"""Asks Airflow what a caller may see, without a cache; raises as `Authorizer` does."""

GroupKey: TypeAlias = tuple[bytes, StreamScope, Access]
"""What the streams of a group have in common: caller, scope, and what the caller was permitted."""


class StreamPermission:
    """The permission of one live stream."""

    __slots__ = ("_revalidator", "group", "on_expiring", "subscription")

    def __init__(
        self,
        revalidator: Revalidator,
        group: PermissionGroup,
        subscription: Subscription,
        on_expiring: OnTokenExpiring | None,
    ) -> None:
        self._revalidator = revalidator
        self.group = group
        self.subscription = subscription
        self.on_expiring = on_expiring
        group.streams.add(self)

    async def revalidate(self, caller: Caller) -> None:
        """Continue with another credential.

        Raises:
            AirflowRefused: Its caller may not see this. Nothing has changed.
            Unavailable: Airflow can't be asked. Nothing has changed.
        """
        before = self.group
        access = await self._revalidator.check_access(caller, before.grant.scope)
        if self not in before.streams:
            # Released meanwhile.
            return
        if access != before.grant.access:
            self.close_changed()
        self.release()
        self.group = self._revalidator.group_for(before.grant._replace(caller=caller, access=access))
        self.group.streams.add(self)

    def release(self) -> None:
        """Stop revalidating: the stream is closed."""
        self.group.streams.discard(self)
        self._revalidator.discard_if_empty(self.group)

    def close_changed(self) -> None:
        """Have the client reconnect, because it may see something else now."""
        reason = "What you may see has changed"
        self.subscription.disconnect(CloseCode.ACCESS_CHANGED, reason, retry_ms=_random_reconnect_delay())

    def warn_of_expiry(self, expires_at: datetime) -> None:
        """Warn the client that its token is about to expire."""
        if self.on_expiring is not None:
            self.on_expiring(self.subscription, expires_at)
        else:
            reason = "The token is about to expire; connect with a new one"
            self.subscription.disconnect(CloseCode.AUTH_EXPIRING, reason, retry_ms=_random_reconnect_delay())


class PermissionGroup:
    """Streams that depend on the same answer."""

    __slots__ = ("confirmed_at", "due_at", "grant", "is_failing", "is_queued", "key", "streams", "warn_at")

    def __init__(self, key: GroupKey, grant: Grant, now: float) -> None:
        self.key = key
        self.grant = grant
        """That of one of the streams. The others differ in the run at most."""

        self.streams: set[StreamPermission] = set()
        self.confirmed_at = now
        self.due_at = now
        self.warn_at: float | None = None
        """By the wall clock, as `exp` of a token is."""

        self.is_queued = False
        """Whether it is being revalidated, or waits for that."""

        self.is_failing = False
        """Whether the last check had no answer."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Disconnect all clients."""
        for stream in list(self.streams):
            stream.subscription.disconnect(
                code, reason, retry_ms=_random_reconnect_delay() if code.should_reconnect else None
            )

    def warn_of_expiry(self) -> None:
        """Warn all clients, once, that their token is about to expire."""
        self.warn_at = None
        expires_at = self.grant.caller.expires_at
        assert expires_at is not None, "warn_at was made of it"
        for stream in list(self.streams):
            stream.warn_of_expiry(datetime.fromtimestamp(expires_at, timezone.utc))


class Revalidator:
    """Revalidates all live streams.

    Args:
        check_access: Asks Airflow.
        credential_digest: Returns what stands for a caller.
        interval: Seconds after which Airflow is asked again.
        grace: Seconds for which streams continue while Airflow does not answer.
        clock: Returns the time in seconds, by a steady clock.
        wall_clock: Returns the seconds since the epoch.
    """

    def __init__(
        self,
        check_access: CheckAccess,
        credential_digest: Callable[[Caller], bytes],
        *,
        interval: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.check_access = check_access
        self._credential_digest = credential_digest
        self._interval, self._grace = interval, grace
        self._clock, self._wall_clock = clock, wall_clock
        self._groups: dict[GroupKey, PermissionGroup] = {}
        self._due_groups: deque[PermissionGroup] = deque()
        self._checks = TaskSet("revalidation", on_end=lambda _: self._start_checks())

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[PermissionGroup]:
        """All groups."""
        return list(self._groups.values())

    def register(self, grant: Grant, subscription: Subscription, expiring: OnTokenExpiring | None) -> StreamPermission:
        """Revalidate a stream until its permission is released. The arguments are those of `register_stream`."""
        return StreamPermission(self, self.group_for(grant), subscription, expiring)

    def group_for(self, grant: Grant) -> PermissionGroup:
        """Return the group of a stream. Permissions in Airflow are those of DAGs, so all runs of a DAG share one."""
        caller, scope, access = grant
        shared_scope = StreamScope(scope.dag_id, "~" if scope.run_id or scope.output else "")
        # The access is part of the key: a stream that was permitted more than others must not be confirmed with them.
        key = self._credential_digest(caller), shared_scope, access
        group = self._groups.get(key)
        if group is None:
            now = self._clock()
            group = self._groups[key] = PermissionGroup(key, grant, now)
            group.due_at = now + self._interval * _random_share(FIRST_DELAY)
            expires_at = caller.expires_at
            if expires_at is not None and expires_at - WARNING_SECONDS > self._wall_clock():
                group.warn_at = expires_at - WARNING_SECONDS
        return group

    def discard_if_empty(self, group: PermissionGroup) -> None:
        """Drop a group without streams."""
        if not group.streams and self._groups.get(group.key) is group:
            del self._groups[group.key]

    async def run(self) -> None:
        """Check all groups, until cancelled."""
        while True:
            await asyncio.sleep(self._interval / CHECKS_PER_INTERVAL)
            groups = self.groups
            for start in range(0, len(groups), GROUPS_PER_TURN):
                self.check_groups(groups[start : start + GROUPS_PER_TURN])
                await asyncio.sleep(0)

    def check_groups(self, groups: Iterable[PermissionGroup]) -> None:
        """Disconnect, revalidate and warn the groups for which it is time."""
        now, wall = self._clock(), self._wall_clock()
        for group in groups:
            if now - group.confirmed_at > self._interval + self._grace:
                group.disconnect(CloseCode.UNAVAILABLE, "Airflow can't be asked whether you may still read this")
            elif now >= group.due_at and not group.is_queued:
                group.is_queued = True
                self._due_groups.append(group)
            if group.warn_at is not None and wall >= group.warn_at:
                group.warn_of_expiry()
        self._start_checks()

    async def close(self) -> None:
        """Cancel all checks."""
        self._due_groups.clear()
        await self._checks.aclose()

    def _start_checks(self) -> None:
        """Revalidate the groups that are due, as many as may be at once."""
        while self._due_groups and len(self._checks) < MAX_CONCURRENT_CHECKS:
            group = self._due_groups.popleft()
            if not group.streams:
                # All its streams were closed while it waited.
                group.is_queued = False
                continue
            self._checks.start(self._check(group))

    async def _check(self, group: PermissionGroup) -> None:
        try:
            access = await self.check_access(group.grant.caller, group.grant.scope)
        except Exception as error:
            if not isinstance(error, StreamServerError) and not group.is_failing:
                # The first in a row only. Errors of our own are logged where they are raised.
                log.exception("A look-up of permissions has failed", extra={"action": "lookup_failed"})
            self._handle_error(group, error)
        else:
            group.is_failing = False
            group.confirmed_at = self._clock()
            group.due_at = group.confirmed_at + self._interval * _random_share(LATER_DELAY)
            if access != group.grant.access:
                for stream in list(group.streams):
                    stream.close_changed()
        finally:
            group.is_queued = False

    def _handle_error(self, group: PermissionGroup, error: Exception) -> None:
        """Disconnect a group that was refused; check it again soon if there was no answer."""
        if isinstance(error, AirflowRefused) and error.status in {401, 403}:
            code = CloseCode.UNAUTHENTICATED if is_credential_refused(error) else CloseCode.FORBIDDEN
            group.disconnect(code, f"Airflow refused: {error}")
            return
        group.is_failing = True
        group.due_at = self._clock() + min(RETRY_SECONDS, self._interval) * _random_share(LATER_DELAY)


def is_credential_refused(error: AirflowRefused) -> bool:
    """Whether Airflow refuses a credential, rather than a permission."""
    return error.status == UNAUTHENTICATED


def _random_share(bounds: tuple[float, float]) -> float:
    return random.uniform(*bounds)  # noqa: S311 # not for secrets


def _random_reconnect_delay() -> int:
    return random.randint(*RECONNECT_DELAY_MS)  # noqa: S311 # not for secrets
