"""Stopping runs that nobody waits for any more, where their caller wanted that.

Somebody may come back to another server of the same database. So each server notes there for which of these runs it has
clients, and none stops a run for which another has.
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
from stream_server.errors import JournalForbidden, JournalMissing, JournalUnreachable, ReadReplica, StreamServerError
from stream_server.hub.hub import Hub
from stream_server.journal.waiting_servers import WaitingServers

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
"""How long runs are gathered for one look at what other servers have noted."""

CHECK_SECONDS = 1.0
"""How often it is looked whether what was noted is still so."""

REGISTRATION_SECONDS = 600.0
"""How long a note stands, if its server dies."""

START_SECONDS = 60.0
"""How long a call may take from the note to the watching of its run."""

UNREGISTER_SECONDS = 1.0
"""How long taking back all notes may take when the server stops."""


class Cancellations:
    """Runs that will be stopped unless somebody comes back to watch them.

    Args:
        hub: Where they are watched.
        waiters: What the servers have noted. Where that can't be had, as on a read replica, this server knows of its
            own clients only.
    """

    def __init__(self, hub: Hub, waiters: WaitingServers) -> None:
        self._hub = hub
        self._waiting_servers = waiters
        self._tasks: dict[RunKey, asyncio.Task[None]] = {}
        self._registered: dict[RunKey, float] = {}
        """By run, the time before which nobody need watch it."""
        self._newly_watched: set[RunKey] = set()
        self._has_changes = asyncio.Event()
        hub.on_run_watched(self._on_run_watched)

    async def run(self) -> None:
        """Note for which runs there are clients, until cancelled."""
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
                log.debug("What other servers wait for is not known: %s", error)

    async def register_run(self, key: RunKey) -> None:
        """Note that somebody will wait for a run that shall be stopped when nobody does."""
        self._registered[key] = time.monotonic() + START_SECONDS
        self._has_changes.set()
        try:
            await self._waiting_servers.register_runs({key}, REGISTRATION_SECONDS, beside_others=False)
        except StreamServerError as error:
            log.warning("Other servers do not know that somebody waits for run %s: %s", key, error)

    def schedule_cancel(
        self, key: RunKey, question: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        """Stop a run after `grace` seconds, if nobody watches it then, and what was asked of it is still open.

        A later call replaces an earlier one.
        """
        if (before := self._tasks.pop(key, None)) is not None:
            before.cancel()
        task = asyncio.create_task(self._cancel_after_grace(key, question, cancel, grace), name="cancellation")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._discard_task(key, done))

    async def close(self) -> None:
        """Give up: the server stops, and those who come back will find another. The runs go on."""
        tasks = list(self._tasks.values())
        for key in self._tasks:
            log.warning("Run %s goes on: the server stops before its caller's grace was over", key)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._registered:
            with suppress(StreamServerError), anyio.move_on_after(UNREGISTER_SECONDS):
                await self._waiting_servers.unregister_runs(self._registered.keys())

    def _on_run_watched(self, key: RunKey) -> None:
        """Take notice that somebody watches a run."""
        if key not in self._registered:
            self._newly_watched.add(key)
            self._has_changes.set()

    async def _update_registrations(self) -> None:
        """Note those new runs that others have noted, and take back what is not so any more."""
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
            if begins < now and key not in self._tasks and not self._hub.is_watched(key)
        }
        if left:
            await self._unregister(left)

    async def _unregister(self, keys: set[RunKey]) -> frozenset[RunKey]:
        for key in keys:
            self._registered.pop(key, None)
        return await self._waiting_servers.unregister_runs(keys)

    async def _cancel_after_grace(
        self, key: RunKey, question: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        await asyncio.sleep(grace)
        if self._hub.is_watched(key):
            return
        try:
            if await self._is_watched_elsewhere(key) or not await self._is_undecided(key, question):
                return
            await cancel()
        except StreamServerError as error:
            log.warning("Run %s was left by all who waited for it, and could not be stopped: %s", key, error)
        else:
            log.info("Stopped run %s, which all had left who waited for it", key)

    async def _is_watched_elsewhere(self, key: RunKey) -> bool:
        try:
            return key in await self._unregister({key})
        except (JournalForbidden, JournalMissing, ReadReplica) as error:
            log.warning("Whether another server has clients who watch run %s is not known: %s", key, error)
            return False

    async def _is_undecided(self, key: RunKey, question: WatchOptions) -> bool:
        """Tell whether a run has not answered yet, as the database has it: nobody has watched it meanwhile."""
        with closing(await self._hub.subscribe(key, question)):
            run = self._hub.run_state(key)
            return run is not None and not run.has_ended and isinstance(evaluate(run, question), Undecided)

    def _discard_task(self, key: RunKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
