"""Cancels runs that were triggered with `on_disconnect=cancel` when no client watches them any more.

A client may reconnect to another server of the same database. So each server registers there for which of these runs it
has clients, and no server cancels a run that another one has registered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress

import anyio

from stream_server.domain.outcome import Undecided, WatchOptions, evaluate
from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalUnreachable, StreamServerError
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.hub import Hub
from stream_server.journal.idempotency_keys import CANNOT_STORE
from stream_server.journal.waiting_servers import WaitingServers

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
"""Time in which newly watched runs are collected for one query."""

CHECK_SECONDS = 1.0
"""Interval at which registrations without clients are removed."""

REGISTRATION_SECONDS = 600.0
"""Time after which a registration expires, if its server dies."""

START_SECONDS = 60.0
"""Time a call may take from the registration of its run until it watches that."""

UNREGISTER_SECONDS = 1.0
"""Timeout of the removal of all registrations when the server stops."""


class Cancellations:
    """Scheduled cancellations of runs, and the registrations of watched runs in the database.

    Args:
        hub: Where they are watched.
        waiters: The registrations of all servers. On a read replica there are none: each server decides by its own
            clients.
    """

    def __init__(self, hub: Hub, waiters: WaitingServers) -> None:
        self._hub = hub
        self._waiting_servers = waiters
        self._tasks = TaskSet("cancellation")
        self._scheduled: dict[RunKey, asyncio.Task[None]] = {}
        self._registered: dict[RunKey, float] = {}
        """Registered runs, with the time before which they need no client."""
        self._newly_watched: set[RunKey] = set()
        self._has_changes = asyncio.Event()
        hub.on_run_watched(self._on_run_watched)

    async def run(self) -> None:
        """Keep the registrations up to date, until cancelled."""
        renewed = time.monotonic()
        while True:
            with anyio.move_on_after(CHECK_SECONDS if self._registered else None):
                await self._has_changes.wait()
                await asyncio.sleep(BATCH_SECONDS)
            self._has_changes.clear()
            try:
                await self._update_registrations()
                if time.monotonic() - renewed > REGISTRATION_SECONDS / 3:
                    renewed = time.monotonic()
                    await self._waiting_servers.register_runs(
                        self._registered.keys(), REGISTRATION_SECONDS, beside_others=False
                    )
            except StreamServerError as error:
                log.debug("Cannot read or write registrations of watched runs: %s", error)

    async def register_run(self, key: RunKey) -> None:
        """Register a run that is about to be triggered with `on_disconnect=cancel`."""
        self._registered[key] = time.monotonic() + START_SECONDS
        self._has_changes.set()
        try:
            await self._waiting_servers.register_runs({key}, REGISTRATION_SECONDS, beside_others=False)
        except StreamServerError as error:
            log.warning("Cannot register run %s as watched, so that another server may cancel it: %s", key, error)

    def schedule_cancel(
        self, key: RunKey, options: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        """Cancel a run after `grace` seconds, if no client watches it then and its outcome is undecided.

        A later call replaces an earlier one.
        """
        if (before := self._scheduled.pop(key, None)) is not None:
            before.cancel()
        task = self._scheduled[key] = self._tasks.start(self._cancel_after_grace(key, options, cancel, grace))
        task.add_done_callback(lambda done: self._discard_task(key, done))

    async def close(self) -> None:
        """Drop all scheduled cancellations, because the server stops. Clients may reconnect to another one."""
        for key in self._scheduled:
            log.warning("Run %s is not cancelled: the server stops before its grace period is over", key)
        await self._tasks.aclose()
        if self._registered:
            with suppress(StreamServerError), anyio.move_on_after(UNREGISTER_SECONDS):
                await self._waiting_servers.unregister_runs(self._registered.keys())

    def _on_run_watched(self, key: RunKey) -> None:
        if key not in self._registered:
            self._newly_watched.add(key)
            self._has_changes.set()

    async def _update_registrations(self) -> None:
        """Register newly watched runs that other servers have registered; unregister those without clients."""
        begun = {key for key in self._newly_watched if self._hub.is_watched(key)}
        self._newly_watched.clear()
        if begun:
            try:
                found = await self._waiting_servers.register_runs(begun, REGISTRATION_SECONDS, beside_others=True)
            except JournalUnreachable:
                self._newly_watched |= begun
                raise
            for key in found:
                self._registered.setdefault(key, 0.0)
        now = time.monotonic()
        left = {
            key
            for key, begins in self._registered.items()
            if begins < now and key not in self._scheduled and not self._hub.is_watched(key)
        }
        if left:
            await self._unregister(left)

    async def _unregister(self, keys: set[RunKey]) -> frozenset[RunKey]:
        for key in keys:
            self._registered.pop(key, None)
        return await self._waiting_servers.unregister_runs(keys)

    async def _cancel_after_grace(
        self, key: RunKey, options: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        await asyncio.sleep(grace)
        if self._hub.is_watched(key):
            return
        try:
            if await self._is_watched_elsewhere(key) or not await self._is_undecided(key, options):
                return
            # A client may have reconnected while the database answered.
            if self._hub.is_watched(key):
                return
            await cancel()
        except StreamServerError as error:
            log.warning("Run %s has no client any more and could not be cancelled: %s", key, error)
        else:
            log.info("Cancelled run %s, which has no client any more", key)

    async def _is_watched_elsewhere(self, key: RunKey) -> bool:
        try:
            return key in await self._unregister({key})
        except CANNOT_STORE as error:
            log.warning("Cannot check whether another server has clients that watch run %s: %s", key, error)
            return False

    async def _is_undecided(self, key: RunKey, options: WatchOptions) -> bool:
        """Whether the outcome of a run is undecided. It is read from the database: the hub no longer has the run."""
        with closing(await self._hub.subscribe(key, options, is_client=False)):
            run = self._hub.run_state(key)
            return run is not None and not run.has_ended and isinstance(evaluate(run, options), Undecided)

    def _discard_task(self, key: RunKey, task: asyncio.Task[None]) -> None:
        if self._scheduled.get(key) is task:
            del self._scheduled[key]
