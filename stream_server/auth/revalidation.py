"""Keeping streams to what their callers may see, for as long as they live.

Streams of one caller that stand and fall by one answer are a party, and Airflow is asked once for all of them. One loop
looks after all parties: there is neither a task nor a timer for each client.
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

from stream_server.auth.authorizer import Access, Caller, OnTokenExpiring, StreamScope
from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode

log = logging.getLogger(__name__)

WARNING_SECONDS = 60.0
"""How long before a token expires its bearer is told."""

RETRY_SECONDS = 5.0
"""How soon Airflow is asked again where it did not answer, at most."""

CHECKS_PER_INTERVAL = 16
"""How often in an interval the parties are looked at."""

FIRST_DELAY, LATER_DELAY = (0.25, 0.5), (0.75, 1.0)
"""Bounds of the random part of an interval after which a party is asked for: the first answer may be a kept one."""

MAX_CONCURRENT_CHECKS = 8
"""How many parties are asked for at once: who comes anew does not wait behind all that are due."""

GROUPS_PER_TURN = 500
"""Parties that are looked at in one turn of the loop."""

RECONNECT_DELAY_MS = (0, 3000)
"""Bounds of the random delay after which those come back who must."""

INVALID_TOKEN_DETAIL = "Invalid JWT token"  # noqa: S105 # what Airflow says, and no token
"""Detail of the 403 that Airflow answers to a token that was revoked, or is none (`core_api.security`)."""

CheckAccess: TypeAlias = Callable[[Caller, StreamScope], Awaitable[Access]]
"""Asks Airflow anew what a caller may see; raises as `Authorizer` does."""

GroupKey: TypeAlias = tuple[bytes, StreamScope, Access]
"""What a party has in common: who, what he watches, and what he was let see of it."""


class StreamPermission:
    """Keeps one stream to what its caller may see."""

    __slots__ = ("_revalidator", "group", "on_expiring", "subscription")

    def __init__(
        self, guards: Revalidator, party: PermissionGroup, subscription: Subscription, expiring: OnTokenExpiring | None
    ) -> None:
        self._revalidator = guards
        self.group = party
        self.subscription = subscription
        self.on_expiring = expiring
        party.streams.add(self)

    async def revalidate(self, caller: Caller) -> None:
        """Go on with another credential.

        Raises:
            AirflowRefused: Its bearer may not see this; nothing has changed.
            Unavailable: Airflow can't be asked; nothing has changed.
        """
        before = self.group
        access = await self._revalidator.check_access(caller, before.scope)
        if self not in before.streams:
            return
        if access != before.access:
            self.close_changed()
        self.release()
        self.group = self._revalidator.group_for(caller, before.scope, access)
        self.group.streams.add(self)

    def release(self) -> None:
        """Let go: the stream is over."""
        self.group.streams.discard(self)
        self._revalidator.discard_if_empty(self.group)

    def close_changed(self) -> None:
        """Have the client come back: what he may see is another thing now."""
        self.subscription.disconnect(
            CloseCode.ACCESS_CHANGED, "What you may see has changed", retry_ms=_random_reconnect_delay()
        )

    def warn_of_expiry(self, expires_at: datetime) -> None:
        """Tell the client that his token is about to expire."""
        if self.on_expiring is not None:
            self.on_expiring(self.subscription, expires_at)
        else:
            reason = "The token is about to expire; connect with a new one"
            self.subscription.disconnect(CloseCode.AUTH_EXPIRING, reason, retry_ms=_random_reconnect_delay())


class PermissionGroup:
    """Streams that stand and fall by one answer."""

    __slots__ = (
        "access",
        "caller",
        "confirmed_at",
        "due_at",
        "is_failing",
        "is_queued",
        "key",
        "scope",
        "streams",
        "warn_at",
    )

    def __init__(self, key: GroupKey, caller: Caller, scope: StreamScope, access: Access, now: float) -> None:
        self.key = key
        self.caller = caller
        self.scope = scope
        self.access = access
        self.streams: set[StreamPermission] = set()
        self.confirmed_at = now
        self.due_at = now
        self.warn_at: float | None = None
        """By the wall clock, as tokens have it."""

        self.is_queued = False
        """Whether it is being asked for, or in line for that."""

        self.is_failing = False
        """Whether the last question had no answer."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connections of all."""
        for guard in list(self.streams):
            guard.subscription.disconnect(
                code, reason, retry_ms=_random_reconnect_delay() if code.should_reconnect else None
            )

    def warn_of_expiry(self) -> None:
        """Tell all that their token is about to expire, once."""
        self.warn_at = None
        expires_at = self.caller.expires_at
        assert expires_at is not None, "there is something to warn of"
        for guard in list(self.streams):
            guard.warn_of_expiry(datetime.fromtimestamp(expires_at, timezone.utc))


class Revalidator:
    """All streams that are guarded.

    Args:
        ask: Asks Airflow.
        identity: Tells what stands for a caller.
        interval: Seconds after which Airflow is asked again.
        grace: Seconds for which streams go on where it does not answer.
        clock: Tells the time in seconds, steadily.
        wall_clock: Tells the seconds since the epoch.
    """

    def __init__(
        self,
        ask: CheckAccess,
        identity: Callable[[Caller], bytes],
        *,
        interval: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.check_access = ask
        self._credential_digest = identity
        self._interval, self._grace = interval, grace
        self._clock, self._wall_clock = clock, wall_clock
        self._groups: dict[GroupKey, PermissionGroup] = {}
        self._due_groups: deque[PermissionGroup] = deque()
        self._checks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[PermissionGroup]:
        """All that are looked after."""
        return list(self._groups.values())

    def register(
        self,
        caller: Caller,
        scope: StreamScope,
        access: Access,
        subscription: Subscription,
        expiring: OnTokenExpiring | None,
    ) -> StreamPermission:
        """Guard a stream; the arguments are those of `Authorizer.guard`."""
        return StreamPermission(self, self.group_for(caller, scope, access), subscription, expiring)

    def group_for(self, caller: Caller, scope: StreamScope, access: Access) -> PermissionGroup:
        """Return those of a caller who stand and fall with a scope: permissions are those of DAGs, not of runs."""
        whose = StreamScope(scope.dag_id, "~" if scope.run_id or scope.output else "")
        # Who was let see another thing is asked for by himself, or he would keep what has been taken from him.
        key = self._credential_digest(caller), whose, access
        party = self._groups.get(key)
        if party is None:
            now = self._clock()
            party = self._groups[key] = PermissionGroup(key, caller, scope, access, now)
            party.due_at = now + self._interval * _random_share(FIRST_DELAY)
            expires_at = caller.expires_at
            if expires_at is not None and expires_at - WARNING_SECONDS > self._wall_clock():
                party.warn_at = expires_at - WARNING_SECONDS
        return party

    def discard_if_empty(self, party: PermissionGroup) -> None:
        """Forget a party that nobody is of any more."""
        if not party.streams and self._groups.get(party.key) is party:
            del self._groups[party.key]

    async def run(self) -> None:
        """Look after the streams for ever."""
        while True:
            await asyncio.sleep(self._interval / CHECKS_PER_INTERVAL)
            parties = self.groups
            for begin in range(0, len(parties), GROUPS_PER_TURN):
                self.check_groups(parties[begin : begin + GROUPS_PER_TURN])
                await asyncio.sleep(0)

    def check_groups(self, parties: Iterable[PermissionGroup]) -> None:
        """See what is due of some parties."""
        now, wall = self._clock(), self._wall_clock()
        for party in parties:
            if now - party.confirmed_at > self._interval + self._grace:
                party.disconnect(CloseCode.UNAVAILABLE, "Airflow can't be asked whether you may still read this")
            elif now >= party.due_at and not party.is_queued:
                party.is_queued = True
                self._due_groups.append(party)
            if party.warn_at is not None and wall >= party.warn_at:
                party.warn_of_expiry()
        self._start_checks()

    async def close(self) -> None:
        """Stop asking."""
        self._due_groups.clear()
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)

    def _start_checks(self) -> None:
        """Ask for those that are due, as many as may be asked for at once."""
        while self._due_groups and len(self._checks) < MAX_CONCURRENT_CHECKS:
            party = self._due_groups.popleft()
            if not party.streams:
                # Its clients have gone while it stood in line.
                party.is_queued = False
                continue
            task = asyncio.create_task(self._check(party), name="renewal")
            self._checks.add(task)
            task.add_done_callback(self._on_checked)

    def _on_checked(self, task: asyncio.Task[None]) -> None:
        self._checks.discard(task)
        if not task.cancelled():
            self._start_checks()

    async def _check(self, party: PermissionGroup) -> None:
        try:
            access = await self.check_access(party.caller, party.scope)
        except Exception as error:
            if not isinstance(error, StreamServerError) and not party.is_failing:
                # The first in a row only. Errors of our own are logged by the one that asks.
                log.exception("A look-up of permissions has failed", extra={"action": "lookup_failed"})
            self._handle_error(party, error)
        else:
            party.is_failing = False
            party.confirmed_at = self._clock()
            party.due_at = party.confirmed_at + self._interval * _random_share(LATER_DELAY)
            if access != party.access:
                for guard in list(party.streams):
                    guard.close_changed()
        finally:
            party.is_queued = False

    def _handle_error(self, party: PermissionGroup, error: Exception) -> None:
        if isinstance(error, AirflowRefused) and error.status in {401, 403}:
            code = CloseCode.UNAUTHENTICATED if is_credential_refused(error) else CloseCode.FORBIDDEN
            party.disconnect(code, f"Airflow says: {error}")
            return
        party.is_failing = True
        party.due_at = self._clock() + min(RETRY_SECONDS, self._interval) * _random_share(LATER_DELAY)


def is_credential_refused(error: AirflowRefused) -> bool:
    """Tell whether Airflow refuses a credential, rather than a permission."""
    return error.status == 401 or str(error) == INVALID_TOKEN_DETAIL  # noqa: PLR2004


def _random_share(bounds: tuple[float, float]) -> float:
    return random.uniform(*bounds)  # noqa: S311 # not for secrets


def _random_reconnect_delay() -> int:
    return random.randint(*RECONNECT_DELAY_MS)  # noqa: S311 # not for secrets
