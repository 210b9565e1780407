"""Airflow's answers to who may do what, kept for a while.

What is kept is found by a keyed hash of the credential, whose key no other process has, and never has the credential.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import NamedTuple

from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowRefused

NOT_FOUND = 404

CALLER_BYTES = 16
"""Size of the hash of a credential."""


class Permit(NamedTuple):
    """An answer of Airflow's."""

    status: int
    """200, or why not."""

    detail: str = ""
    """What Airflow said of a refusal."""

    challenge: str | None = None
    """Its `WWW-Authenticate`."""

    @property
    def granted(self) -> bool:
        """Whether the caller may."""
        return self.status == 200  # noqa: PLR2004

    def require(self) -> None:
        """Do nothing if the caller may.

        Raises:
            AirflowRefused: He may not.
        """
        if not self.granted:
            raise AirflowRefused(self.detail, self.status, challenge=self.challenge)


Subject = tuple[str, str]
"""What a permit is for: the kind of thing, and the DAG whose it is."""

Ask = Callable[[], Awaitable[Permit]]


class _Kept(NamedTuple):
    permit: Permit
    asked_at: float


class Permits:
    """Permits by caller and subject.

    Args:
        good_for: Seconds for which a permit is good.
        refused_for: Seconds for which a refusal stands.
        limit: How many are kept; those that were asked for least recently go first.
        at_once: How many questions may be under way.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        *,
        good_for: float,
        refused_for: float,
        limit: int,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._good_for, self._refused_for, self._limit = good_for, refused_for, limit
        self._clock = clock
        self._key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)
        self._kept: OrderedDict[tuple[bytes, Subject], _Kept] = OrderedDict()
        self._asking: dict[tuple[bytes, Subject], asyncio.Task[Permit]] = {}
        self.turn = asyncio.Semaphore(at_once)
        """To be held by who asks Airflow something, so that it is not asked too much at once."""

    def __len__(self) -> int:
        return len(self._kept)

    def identity(self, caller: Caller) -> bytes:
        """Return what stands for a caller in this process: the same for the same credential, and for no other."""
        digest = blake2b(digest_size=CALLER_BYTES, key=self._key)
        for name, value in sorted(caller.headers.items()):
            digest.update(f"{len(name)}:{name}{len(value)}:{value}".encode(errors="surrogateescape"))
        return digest.digest()

    async def get(self, caller: Caller, subject: Subject, ask: Ask, *, anew: bool = False) -> Permit:
        """Return a permit: one that is kept, or what Airflow says. Those who ask the same at once share the answer.

        Args:
            caller: Who wants it.
            subject: What for.
            ask: Asks Airflow.
            anew: Whether what is kept does not count.

        Raises:
            StreamServerError: What `ask` raises; nothing is kept then.
        """
        key = self.identity(caller), subject
        kept = None if anew else self._kept.get(key)
        if kept is not None and self._clock() - kept.asked_at < self._lifetime(kept.permit):
            self._kept.move_to_end(key)
            return kept.permit
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, ask), name="question to Airflow")
            asking.add_done_callback(lambda task: self._asked(key, task))
        # Who goes away does not take the answer from the others.
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: tuple[bytes, Subject], ask: Ask) -> Permit:
        async with self.turn:
            asked_at = self._clock()
            permit = await ask()
        if permit.status == NOT_FOUND:
            # It may be there in a moment.
            return permit
        self._kept[key] = _Kept(permit, asked_at)
        self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return permit

    def _asked(self, key: tuple[bytes, Subject], task: asyncio.Task[Permit]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            # Seen, also where nobody waits any more.
            task.exception()

    def _lifetime(self, permit: Permit) -> float:
        return self._good_for if permit.granted else self._refused_for
