"""Stopping runs that nobody waits for any more, where their caller wanted that.

Somebody may come back to another server of the same database. So each server notes there for which of these runs it has
clients, and none stops a run for which another has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from stream_server.domain.outcome import Undecided, WatchOptions, evaluate
from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalForbidden, JournalMissing, JournalUnreachable, ReadReplica, StreamServerError
from stream_server.hub.hub import Hub
from stream_server.journal.waiting_servers import WaitingServers

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
"""How long runs are gathered for one look at what other servers have noted."""

LOOK_SECONDS = 1.0
"""How often it is looked whether what was noted is still so."""

NOTE_SECONDS = 600.0
"""How long a note stands, if its server dies."""

BEGIN_SECONDS = 60.0
"""How long a call may take from the note to the watching of its run."""

GOODBYE_SECONDS = 1.0
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
        self._waiters = waiters
        self._tasks: dict[RunKey, asyncio.Task[None]] = {}
        self._noted: dict[RunKey, float] = {}
        """By run, the time before which nobody need watch it."""
        self._begun: set[RunKey] = set()
        self._due = asyncio.Event()
        hub.on_run_watched(self._see)

    async def run(self) -> None:
        """Note for which runs there are clients, until cancelled."""
        renewed = time.monotonic()
        while True:
            with anyio.move_on_after(LOOK_SECONDS if self._noted else None):
                await self._due.wait()
                await asyncio.sleep(GATHER_SECONDS)
            self._due.clear()
            try:
                await self._look()
                if time.monotonic() - renewed > NOTE_SECONDS / 3:
                    renewed = time.monotonic()
                    await self._waiters.register_runs(self._noted.keys(), NOTE_SECONDS, beside_others=False)
            except StreamServerError as error:
                log.debug("What other servers wait for is not known: %s", error)

    async def expect(self, key: RunKey) -> None:
        """Note that somebody will wait for a run that shall be stopped when nobody does."""
        self._noted[key] = time.monotonic() + BEGIN_SECONDS
        self._due.set()
        try:
            await self._waiters.register_runs({key}, NOTE_SECONDS, beside_others=False)
        except StreamServerError as error:
            log.warning("Other servers do not know that somebody waits for run %s: %s", key, error)

    def schedule(
        self, key: RunKey, question: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        """Stop a run after `grace` seconds, if nobody watches it then, and what was asked of it is still open.

        A later call replaces an earlier one.
        """
        if (before := self._tasks.pop(key, None)) is not None:
            before.cancel()
        task = asyncio.create_task(self._cancel(key, question, cancel, grace), name="cancellation")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))

    async def close(self) -> None:
        """Give up: the server stops, and those who come back will find another. The runs go on."""
        tasks = list(self._tasks.values())
        for key in self._tasks:
            log.warning("Run %s goes on: the server stops before its caller's grace was over", key)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._noted:
            with suppress(StreamServerError), anyio.move_on_after(GOODBYE_SECONDS):
                await self._waiters.unregister_runs(self._noted.keys())

    def _see(self, key: RunKey) -> None:
        """Take notice that somebody watches a run."""
        if key not in self._noted:
            self._begun.add(key)
            self._due.set()

    async def _look(self) -> None:
        """Note those new runs that others have noted, and take back what is not so any more."""
        begun = {key for key in self._begun if self._hub.is_watched(key)}
        self._begun.clear()
        if begun:
            try:
                found = await self._waiters.register_runs(begun, NOTE_SECONDS, beside_others=True)
            except JournalUnreachable:
                self._begun |= begun
                raise
            for key in found:
                self._noted.setdefault(key, 0.0)
        now = time.monotonic()
        left = {
            key
            for key, begins in self._noted.items()
            if begins < now and key not in self._tasks and not self._hub.is_watched(key)
        }
        if left:
            await self._withdraw(left)

    async def _withdraw(self, keys: set[RunKey]) -> frozenset[RunKey]:
        for key in keys:
            self._noted.pop(key, None)
        return await self._waiters.unregister_runs(keys)

    async def _cancel(
        self, key: RunKey, question: WatchOptions, cancel: Callable[[], Awaitable[object]], grace: float
    ) -> None:
        await asyncio.sleep(grace)
        if self._hub.is_watched(key):
            return
        try:
            if await self._is_watched_elsewhere(key) or not await self._open(key, question):
                return
            await cancel()
        except StreamServerError as error:
            log.warning("Run %s was left by all who waited for it, and could not be stopped: %s", key, error)
        else:
            log.info("Stopped run %s, which all had left who waited for it", key)

    async def _is_watched_elsewhere(self, key: RunKey) -> bool:
        try:
            return key in await self._withdraw({key})
        except (JournalForbidden, JournalMissing, ReadReplica) as error:
            log.warning("Whether another server has clients who watch run %s is not known: %s", key, error)
            return False

    async def _open(self, key: RunKey, question: WatchOptions) -> bool:
        """Tell whether a run has not answered yet, as the database has it: nobody has watched it meanwhile."""
        async with self._hub.subscribe(key, question):
            run = self._hub.run_state(key)
            return run is not None and not run.has_ended and isinstance(evaluate(run, question), Undecided)

    def _forget(self, key: RunKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
