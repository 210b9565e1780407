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

DIGEST_BYTES = 16
"""Size of the hash of a credential."""


class CachedPermission(NamedTuple):
    """An answer of Airflow's."""

    status: int
    """200, or why not."""

    detail: str = ""
    """What Airflow said of a refusal."""

    challenge: str | None = None
    """Its `WWW-Authenticate`."""

    @property
    def is_granted(self) -> bool:
        """Whether the caller may."""
        return self.status == 200  # noqa: PLR2004

    def raise_if_refused(self) -> None:
        """Do nothing if the caller may.

        Raises:
            AirflowRefused: He may not.
        """
        if not self.is_granted:
            raise AirflowRefused(self.detail, self.status, challenge=self.challenge)


PermissionSubject = tuple[str, str]
"""What a permit is for: the kind of thing, and the DAG whose it is."""

FetchPermission = Callable[[], Awaitable[CachedPermission]]


class _Entry(NamedTuple):
    permission: CachedPermission
    asked_at: float


class PermissionCache:
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
        self._entries: OrderedDict[tuple[bytes, PermissionSubject], _Entry] = OrderedDict()
        self._requests: dict[tuple[bytes, PermissionSubject], asyncio.Task[CachedPermission]] = {}
        self.request_limit = asyncio.Semaphore(at_once)
        """To be held by who asks Airflow something, so that it is not asked too much at once."""

    def __len__(self) -> int:
        return len(self._entries)

    def credential_digest(self, caller: Caller) -> bytes:
        """Return what stands for a caller in this process: the same for the same credential, and for no other."""
        digest = blake2b(digest_size=DIGEST_BYTES, key=self._key)
        for name, value in sorted(caller.headers.items()):
            digest.update(f"{len(name)}:{name}{len(value)}:{value}".encode(errors="surrogateescape"))
        return digest.digest()

    async def get(
        self, caller: Caller, subject: PermissionSubject, ask: FetchPermission, *, anew: bool = False
    ) -> CachedPermission:
        """Return a permit: one that is kept, or what Airflow says. Those who ask the same at once share the answer.

        Args:
            caller: Who wants it.
            subject: What for.
            ask: Asks Airflow.
            anew: Whether what is kept does not count.

        Raises:
            StreamServerError: What `ask` raises; nothing is kept then.
        """
        key = self.credential_digest(caller), subject
        kept = None if anew else self._entries.get(key)
        if kept is not None and self._clock() - kept.asked_at < self._lifetime(kept.permission):
            self._entries.move_to_end(key)
            return kept.permission
        asking = self._requests.get(key)
        if asking is None:
            asking = self._requests[key] = asyncio.create_task(self._fetch(key, ask), name="question to Airflow")
            asking.add_done_callback(lambda task: self._on_fetched(key, task))
        # Who goes away does not take the answer from the others.
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._requests.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, key: tuple[bytes, PermissionSubject], ask: FetchPermission) -> CachedPermission:
        async with self.request_limit:
            asked_at = self._clock()
            permit = await ask()
        if permit.status == NOT_FOUND:
            # It may be there in a moment.
            return permit
        self._entries[key] = _Entry(permit, asked_at)
        self._entries.move_to_end(key)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        return permit

    def _on_fetched(self, key: tuple[bytes, PermissionSubject], task: asyncio.Task[CachedPermission]) -> None:
        self._requests.pop(key, None)
        if not task.cancelled():
            # Seen, also where nobody waits any more.
            task.exception()

    def _lifetime(self, permit: CachedPermission) -> float:
        return self._good_for if permit.is_granted else self._refused_for
