"""Airflow's answers about permissions, kept for a while.

They are found by a keyed digest of the credential; the credential itself is not kept.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import NamedTuple

import anyio
from cachetools import TLRUCache

from stream_server.auth.authorizer import Caller
from stream_server.auth.credential import credential_digest
from stream_server.errors import AirflowRefused, PermissionUnknown
from stream_server.hub.asyncio_tasks import TaskSet

NOT_FOUND = 404

MAX_QUEUE_SECONDS = 30.0
"""How long a request waits until fewer than the maximum number are in progress."""


MAX_QUEUED = 10_000
"""Maximum number of requests that wait so. Enough for all clients that come back after a restart of this server."""


class CachedPermission(NamedTuple):
    """An answer of Airflow."""

    status: int
    """200, or the status of the refusal."""

    detail: str = ""
    """The `detail` of a refusal."""

    challenge: str | None = None
    """Its `WWW-Authenticate`."""

    @property
    def is_granted(self) -> bool:
        return self.status == 200  # noqa: PLR2004

    def raise_if_refused(self) -> None:
        """Raise `AirflowRefused` unless the permission is granted."""
        if not self.is_granted:
            raise AirflowRefused(self.detail, self.status, challenge=self.challenge)


PermissionSubject = tuple[str, str]
"""What a permission is for: a kind of resource, and its DAG."""

FetchPermission = Callable[[], Awaitable[CachedPermission]]

_Key = tuple[bytes, PermissionSubject]


class _Entry(NamedTuple):
    permission: CachedPermission
    requested_at: float


class PermissionCache:
    """Permissions by caller and subject.

    Args:
        good_for: Seconds for which a granted permission is valid.
        refused_for: Seconds for which a refusal is valid.
        limit: Number of permissions that are kept; the least recently used are dropped first.
        at_once: Number of concurrent requests to Airflow.
        clock: Returns the time in seconds.
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
        self._good_for, self._refused_for = good_for, refused_for
        self._clock = clock
        self._key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)
        self._entries: TLRUCache[_Key, _Entry] = TLRUCache(limit, ttu=self._expires_at, timer=clock)
        self._requests: dict[_Key, asyncio.Task[CachedPermission]] = {}
        self._tasks = TaskSet("permission request")
        self._request_limit = asyncio.Semaphore(at_once)
        self._queued = 0

    def __len__(self) -> int:
        return len(self._entries)

    def credential_digest(self, caller: Caller) -> bytes:
        """Return what stands for a caller in this process: the same for the same credential, and for no other."""
        return credential_digest(caller.headers, self._key)

    async def get(
        self, caller: Caller, subject: PermissionSubject, ask: FetchPermission, *, anew: bool = False
    ) -> CachedPermission:
        """Return a permission from the cache, or from Airflow. Concurrent calls for the same one share the request.

        Args:
            caller: The caller.
            subject: What the permission is for.
            ask: Requests it from Airflow.
            anew: Whether to ignore the cache.

        Raises:
            StreamServerError: What `ask` raises. It is not kept.
            PermissionUnknown: Too many other requests wait.
        """
        key = self.credential_digest(caller), subject
        entry = None if anew else self._entries.get(key)
        if entry is not None:
            return entry.permission
        request = self._requests.get(key)
        if request is None:
            request = self._requests[key] = self._tasks.start(self._fetch(key, ask))
            request.add_done_callback(lambda _: self._requests.pop(key, None))
        # Shielded: a call that is cancelled does not cancel the request for the others.
        return await asyncio.shield(request)

    async def close(self) -> None:
        """Cancel all requests."""
        await self._tasks.aclose()

    @asynccontextmanager
    async def limit_request(self) -> AsyncIterator[None]:
        """Count a request to Airflow as in progress. Also used for those that are not made here.

        Raises:
            PermissionUnknown: There were too many for `MAX_QUEUE_SECONDS`, or `MAX_QUEUED` others wait.
        """
        too_slow = PermissionUnknown("Airflow answers too slowly: too many requests for permissions wait")
        if self._queued >= MAX_QUEUED:
            raise too_slow
        self._queued += 1
        try:
            with anyio.fail_after(MAX_QUEUE_SECONDS):
                await self._request_limit.acquire()
        except TimeoutError:
            raise too_slow from None
        finally:
            self._queued -= 1
        try:
            yield
        finally:
            self._request_limit.release()

    async def _fetch(self, key: _Key, ask: FetchPermission) -> CachedPermission:
        async with self.limit_request():
            # Before the request: a permission that is revoked while it is in progress must not stay valid for longer.
            requested_at = self._clock()
            permission = await ask()
        # A DAG or run that does not exist yet may exist in a moment.
        if permission.status != NOT_FOUND:
            self._entries[key] = _Entry(permission, requested_at)
        return permission

    def _expires_at(self, _key: _Key, entry: _Entry, _now: float) -> float:
        return entry.requested_at + (self._good_for if entry.permission.is_granted else self._refused_for)
