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

from stream_server.auth.authorizer import Access, Caller, Expiring, Scope
from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode

log = logging.getLogger(__name__)

WARNING_SECONDS = 60.0
"""How long before a token expires its bearer is told."""

RETRY_SECONDS = 5.0
"""How soon Airflow is asked again where it did not answer, at most."""

TICKS = 16
"""How often in an interval the parties are looked at."""

FIRST, LATER = (0.25, 0.5), (0.75, 1.0)
"""Bounds of the random part of an interval after which a party is asked for: the first answer may be a kept one."""

RENEWALS = 8
"""How many parties are asked for at once: who comes anew does not wait behind all that are due."""

LOOKED_AT = 500
"""Parties that are looked at in one turn of the loop."""

RETRY_MS = (0, 3000)
"""Bounds of the random delay after which those come back who must."""

INVALID_TOKEN = "Invalid JWT token"  # noqa: S105 # what Airflow says, and no token
"""Detail of the 403 that Airflow answers to a token that was revoked, or is none (`core_api.security`)."""

Ask: TypeAlias = Callable[[Caller, Scope], Awaitable[Access]]
"""Asks Airflow anew what a caller may see; raises as `Authorizer` does."""

Key: TypeAlias = tuple[bytes, Scope, Access]
"""What a party has in common: who, what he watches, and what he was let see of it."""


class StreamGuard:
    """Keeps one stream to what its caller may see."""

    __slots__ = ("_guards", "expiring", "party", "subscription")

    def __init__(self, guards: Guards, party: Party, subscription: Subscription, expiring: Expiring | None) -> None:
        self._guards = guards
        self.party = party
        self.subscription = subscription
        self.expiring = expiring
        party.guards.add(self)

    async def renew(self, caller: Caller) -> None:
        """Go on with another credential.

        Raises:
            AirflowRefused: Its bearer may not see this; nothing has changed.
            Unavailable: Airflow can't be asked; nothing has changed.
        """
        before = self.party
        access = await self._guards.ask(caller, before.scope)
        if self not in before.guards:
            return
        if access != before.access:
            self.change()
        self.release()
        self.party = self._guards.party(caller, before.scope, access)
        self.party.guards.add(self)

    def release(self) -> None:
        """Let go: the stream is over."""
        self.party.guards.discard(self)
        self._guards.forget(self.party)

    def change(self) -> None:
        """Have the client come back: what he may see is another thing now."""
        self.subscription.close(CloseCode.ACCESS_CHANGED, "What you may see has changed", retry_ms=_delay())

    def warn(self, expires_at: datetime) -> None:
        """Tell the client that his token is about to expire."""
        if self.expiring is not None:
            self.expiring(self.subscription, expires_at)
        else:
            reason = "The token is about to expire; connect with a new one"
            self.subscription.close(CloseCode.AUTH_EXPIRING, reason, retry_ms=_delay())


class Party:
    """Streams that stand and fall by one answer."""

    __slots__ = (
        "access",
        "caller",
        "confirmed_at",
        "due",
        "guards",
        "is_failing",
        "key",
        "renewing",
        "scope",
        "warn_at",
    )

    def __init__(self, key: Key, caller: Caller, scope: Scope, access: Access, now: float) -> None:
        self.key = key
        self.caller = caller
        self.scope = scope
        self.access = access
        self.guards: set[StreamGuard] = set()
        self.confirmed_at = now
        self.due = now
        self.warn_at: float | None = None
        """By the wall clock, as tokens have it."""

        self.renewing = False
        """Whether it is being asked for, or in line for that."""

        self.is_failing = False
        """Whether the last question had no answer."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connections of all."""
        for guard in list(self.guards):
            guard.subscription.close(code, reason, retry_ms=_delay() if code.reconnect else None)

    def warn(self) -> None:
        """Tell all that their token is about to expire, once."""
        self.warn_at = None
        expires_at = self.caller.expires_at
        assert expires_at is not None, "there is something to warn of"
        for guard in list(self.guards):
            guard.warn(datetime.fromtimestamp(expires_at, timezone.utc))


class Guards:
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
        ask: Ask,
        identity: Callable[[Caller], bytes],
        *,
        interval: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.ask = ask
        self._identity = identity
        self._interval, self._grace = interval, grace
        self._clock, self._wall_clock = clock, wall_clock
        self._parties: dict[Key, Party] = {}
        self._due: deque[Party] = deque()
        self._renewals: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._parties)

    @property
    def parties(self) -> list[Party]:
        """All that are looked after."""
        return list(self._parties.values())

    def add(
        self, caller: Caller, scope: Scope, access: Access, subscription: Subscription, expiring: Expiring | None
    ) -> StreamGuard:
        """Guard a stream; the arguments are those of `Authorizer.guard`."""
        return StreamGuard(self, self.party(caller, scope, access), subscription, expiring)

    def party(self, caller: Caller, scope: Scope, access: Access) -> Party:
        """Return those of a caller who stand and fall with a scope: permissions are those of DAGs, not of runs."""
        whose = Scope(scope.dag_id, "~" if scope.run_id or scope.output else "")
        # Who was let see another thing is asked for by himself, or he would keep what has been taken from him.
        key = self._identity(caller), whose, access
        party = self._parties.get(key)
        if party is None:
            now = self._clock()
            party = self._parties[key] = Party(key, caller, scope, access, now)
            party.due = now + self._interval * _between(FIRST)
            expires_at = caller.expires_at
            if expires_at is not None and expires_at - WARNING_SECONDS > self._wall_clock():
                party.warn_at = expires_at - WARNING_SECONDS
        return party

    def forget(self, party: Party) -> None:
        """Forget a party that nobody is of any more."""
        if not party.guards and self._parties.get(party.key) is party:
            del self._parties[party.key]

    async def run(self) -> None:
        """Look after the streams for ever."""
        while True:
            await asyncio.sleep(self._interval / TICKS)
            parties = self.parties
            for begin in range(0, len(parties), LOOKED_AT):
                self.look(parties[begin : begin + LOOKED_AT])
                await asyncio.sleep(0)

    def look(self, parties: Iterable[Party]) -> None:
        """See what is due of some parties."""
        now, wall = self._clock(), self._wall_clock()
        for party in parties:
            if now - party.confirmed_at > self._interval + self._grace:
                party.close(CloseCode.UNAVAILABLE, "Airflow can't be asked whether you may still read this")
            elif now >= party.due and not party.renewing:
                party.renewing = True
                self._due.append(party)
            if party.warn_at is not None and wall >= party.warn_at:
                party.warn()
        self._go_on()

    async def close(self) -> None:
        """Stop asking."""
        self._due.clear()
        for task in self._renewals:
            task.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)

    def _go_on(self) -> None:
        """Ask for those that are due, as many as may be asked for at once."""
        while self._due and len(self._renewals) < RENEWALS:
            party = self._due.popleft()
            if not party.guards:
                # Its clients have gone while it stood in line.
                party.renewing = False
                continue
            task = asyncio.create_task(self._renew(party), name="renewal")
            self._renewals.add(task)
            task.add_done_callback(self._renewed)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewals.discard(task)
        if not task.cancelled():
            self._go_on()

    async def _renew(self, party: Party) -> None:
        try:
            access = await self.ask(party.caller, party.scope)
        except Exception as error:
            if not isinstance(error, StreamServerError) and not party.is_failing:
                # The first in a row only. Errors of our own are logged by the one that asks.
                log.exception("A look-up of permissions has failed", extra={"action": "lookup_failed"})
            self._refused(party, error)
        else:
            party.is_failing = False
            party.confirmed_at = self._clock()
            party.due = party.confirmed_at + self._interval * _between(LATER)
            if access != party.access:
                for guard in list(party.guards):
                    guard.change()
        finally:
            party.renewing = False

    def _refused(self, party: Party, error: Exception) -> None:
        if isinstance(error, AirflowRefused) and error.status in {401, 403}:
            code = CloseCode.UNAUTHENTICATED if tells_of_token(error) else CloseCode.FORBIDDEN
            party.close(code, f"Airflow says: {error}")
            return
        party.is_failing = True
        party.due = self._clock() + min(RETRY_SECONDS, self._interval) * _between(LATER)


def tells_of_token(error: AirflowRefused) -> bool:
    """Tell whether Airflow refuses a credential, rather than a permission."""
    return error.status == 401 or str(error) == INVALID_TOKEN  # noqa: PLR2004


def _between(bounds: tuple[float, float]) -> float:
    return random.uniform(*bounds)  # noqa: S311 # not for secrets


def _delay() -> int:
    return random.randint(*RETRY_MS)  # noqa: S311 # not for secrets
