"""The runs that are watched in this process: loaded once, kept current, dropped with the last subscription."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from stream_server.domain.outcome import ReturnValues
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.errors import RunNotFound, Unavailable
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.run_feed import RunFeed
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason, Waiting

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

WAITING_CHECK_SECONDS = 2.0
"""How often to look for runs that do not proceed. A run counts as one if it has not changed since the last time."""

MAX_WAITING_RUNS = 500
"""How many such runs one query looks up."""

RELOADS_AT_ONCE = 300
"""How many reloads one step of the event loop starts. Each takes up to 20 µs."""

RETRY_SECONDS = 0.5
"""Pause before a read is repeated that PostgreSQL did not answer."""


class RunSource(Protocol):
    """Where runs are read from. Implemented by `stream_server.journal.run_store.RunStore`."""

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        """Read a run, and the position that its state covers."""

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        """Read the rows of a run, or of all runs, that were not visible at a position.

        Returns:
            `None` if they are too many, or not all in the journal any more. Output is left out unless it is wanted.
        """

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        """Whether the journal has another history than the one that a position comes from."""

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        """Read the return values of tasks of a run."""

    async def read_waiting(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        """Read why unfinished runs do not proceed. Runs without a known reason are left out."""

    async def reconnect(self) -> None:
        """Open new connections: the PostgreSQL server may be another one."""


@dataclass(eq=False, slots=True)
class WatchedRun:
    """A feed, and its reads that are in progress."""

    feed: RunFeed
    load_task: asyncio.Task[None] | None = None
    """The latest load. An earlier one has no effect: it may have read another history."""

    fetch_task: asyncio.Task[None] | None = None
    update_task: asyncio.Task[None] | None = None
    """Brings the prediction of a large run up to date."""

    watcher_count: int = 0
    """Subscriptions, and those that wait for the load."""

    checked_changes: int = -1
    """`feed.changes` when it was last looked at whether the run proceeds."""

    is_at_rest: bool | None = None
    """Whether the next step is up to the scheduler, as of `checked_changes`; `None` if not looked at."""


class WatchedRuns:
    """All watched runs.

    Args:
        source: Where they are read from.
        cursor: Returns how far the journal has been read.
    """

    def __init__(self, source: RunSource, cursor: Callable[[], JournalPosition]) -> None:
        self._source = source
        self._cursor = cursor
        self._runs: dict[RunKey, WatchedRun] = {}
        self._tasks = TaskSet("watched run")
        self._waiting_check: asyncio.Task[None] | None = None
        self._reload_starts: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, key: RunKey) -> WatchedRun | None:
        """Return a run, if it is watched."""
        return self._runs.get(key)

    async def acquire(self, key: RunKey) -> WatchedRun:
        """Return a run once it is loaded, and keep it until `release`. Concurrent calls share the load.

        Raises:
            RunNotFound: Airflow has no such run.
            Unavailable: The run can't be read now.
        """
        watched = self._runs.get(key)
        if watched is None:
            watched = self._runs[key] = WatchedRun(RunFeed(key))
            watched.load_task = self._tasks.start(self._load(watched), "load")
        watched.watcher_count += 1
        if self._waiting_check is None or self._waiting_check.done():
            self._waiting_check = self._tasks.start(self._check_waiting(), "waiting check")
        try:
            await self._wait_until_loaded(watched)
        except BaseException:
            self.release(watched)
            raise
        return watched

    def release(self, watched: WatchedRun) -> None:
        """Undo one `acquire`. With the last one the run is dropped."""
        watched.watcher_count -= 1
        if watched.watcher_count == 0:
            self._discard(watched)
            for task in (watched.load_task, watched.fetch_task, watched.update_task):
                if task is not None and task not in self._reload_starts:
                    task.cancel()

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition) -> None:
        """Apply a batch to the runs that it concerns."""
        batches: dict[WatchedRun, list[Transition]] = {}
        for transition in transitions:
            watched = self._runs.get(RunKey(transition.dag_id, transition.run_id))
            if watched is not None:
                batches.setdefault(watched, []).append(transition)
        for watched, batch in batches.items():
            try:
                self._apply(watched, batch, cursor)
            except Exception as error:  # noqa: BLE001 # the other runs of the batch must get their frames
                self._handle_failure(watched, error)

    def resync(self, reason: ResetReason) -> None:
        """Load every run again: its state may be wrong."""
        self._start_reloads(list(self._runs.values()), reason)

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Continue at a cursor with a PostgreSQL server that may be another one.

        Runs that were loaded after the cursor, or are being loaded, are loaded again: the new server may not have what
        the old one had there.
        """
        await self._source.reconnect()
        newer = [watched for watched in self._runs.values() if not watched.feed.is_covered_by(cursor)]
        self._start_reloads(newer, "journal_changed")

    def start_fetch(self, watched: WatchedRun) -> None:
        """Read the return values that a run needs, unless that is in progress."""
        if watched.feed.wanted_tasks and watched.fetch_task is None:
            watched.fetch_task = self._tasks.start(self._fetch_values(watched), "fetch")

    async def close(self) -> None:
        """Cancel all reads."""
        await self._tasks.aclose()

    async def _wait_until_loaded(self, watched: WatchedRun) -> None:
        while watched.feed.run_state is None or watched.update_task is not None:
            if self._runs.get(watched.feed.key) is not watched:
                # Nothing loads it any more, and a wait for a load that has ended does not suspend.
                break
            if watched.update_task is not None:
                await asyncio.wait({watched.update_task})
                continue
            load = watched.load_task
            assert load is not None, "a feed that has not started is being loaded"
            await asyncio.wait({load})
            if watched.load_task is load:
                load.result()
        if self._runs.get(watched.feed.key) is not watched:
            if watched.feed.run_state is not None and watched.feed.run_state.is_deleted:
                raise RunNotFound(*watched.feed.key)
            raise Unavailable("The server lost the state of this run; try again")

    def _apply(self, watched: WatchedRun, batch: Sequence[Transition], cursor: JournalPosition) -> None:
        if watched.feed.is_outdated_by(batch):
            # Nothing is published before: with another structure, it may be wrong.
            self._start_reload(watched, "run_changed")
            return
        watched.feed.apply(batch, cursor)
        self._follow_up(watched)

    def _follow_up(self, watched: WatchedRun) -> None:
        """Start what a change of a run needs."""
        if watched.feed.is_updating:
            if watched.update_task is None:
                watched.update_task = self._tasks.start(self._update(watched), "update")
            return
        self.start_fetch(watched)
        if watched.feed.run_state is not None and watched.feed.run_state.is_deleted:
            # Another run may get its id.
            self._discard(watched)

    async def _update(self, watched: WatchedRun) -> None:
        """Bring the prediction of a run up to date, in steps between which the event loop does other work."""
        try:
            while watched.feed.is_updating:
                await asyncio.sleep(0)
                with self._isolate_failure(watched):
                    watched.feed.update()
        finally:
            watched.update_task = None
        if watched.feed.run_state is not None:
            with self._isolate_failure(watched):
                self._follow_up(watched)

    def _discard(self, watched: WatchedRun) -> None:
        """Remove a run, so that the next `acquire` loads it again."""
        if self._runs.get(watched.feed.key) is watched:
            del self._runs[watched.feed.key]
        if not self._runs and self._waiting_check is not None:
            self._waiting_check.cancel()

    def _start_reloads(self, runs: Sequence[WatchedRun], reason: ResetReason) -> None:
        """Start the reloads of any number of runs, in steps between which the event loop does other work.

        All states are dropped at once. Until the reload of a run starts, its `load_task` is the task that starts them.
        """
        if not runs:
            return
        start = self._tasks.start(self._reload_in_slices(runs, reason), "start of reloads")
        self._reload_starts.add(start)
        start.add_done_callback(self._reload_starts.discard)
        for watched in runs:
            watched.feed.restart_loading()
            watched.load_task = start

    async def _reload_in_slices(self, runs: Sequence[WatchedRun], reason: ResetReason) -> None:
        for number, watched in enumerate(runs, 1):
            # Another load may have started, and the last client may have left.
            if watched.load_task is asyncio.current_task() and self._runs.get(watched.feed.key) is watched:
                self._start_reload(watched, reason)
            if number % RELOADS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _start_reload(self, watched: WatchedRun, reason: ResetReason) -> None:
        watched.feed.restart_loading()
        watched.load_task = self._tasks.start(self._reload(watched, reason), "reload")

    async def _load(self, watched: WatchedRun) -> None:
        try:
            await self._read_into_feed(watched, self._read_run)
        except BaseException:
            if watched.load_task is asyncio.current_task():
                self._discard(watched)
            raise

    async def _read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        """Read a run.

        Raises:
            RunNotFound: Airflow has no such run.
            Unavailable: The run can't be read now, or comes from a journal that the tail has not reached yet. The
                positions of two journals can't be compared.
        """
        run, loaded_at = await self._source.read_run(key)
        if loaded_at.epoch != self._cursor().epoch:
            raise Unavailable("The database has changed; try again")
        return run, loaded_at

    async def _reload(self, watched: WatchedRun, reason: ResetReason) -> None:
        try:
            await self._read_into_feed(watched, lambda key: self._retry_until_available(self._read_run, key))
        except RunNotFound:
            if watched.load_task is asyncio.current_task():
                watched.feed.start(RunState.deleted(watched.feed.key), self._cursor())
                self._discard(watched)
        if watched.load_task is not asyncio.current_task():
            return
        with self._isolate_failure(watched):
            watched.feed.resync(reason, self._cursor())
            self.start_fetch(watched)

    async def _read_into_feed(
        self, watched: WatchedRun, read: Callable[[RunKey], Awaitable[tuple[RunState, JournalPosition]]]
    ) -> None:
        """Read a run, and again if it has another structure meanwhile. Do nothing if another load has started since."""
        while True:
            run, loaded_at = await read(watched.feed.key)
            if watched.load_task is not asyncio.current_task():
                # This state lacks the transitions that waited for the other load.
                return
            watched.feed.start(run, loaded_at)
            if not run.is_outdated:
                return
            watched.feed.restart_loading()

    async def _fetch_values(self, watched: WatchedRun) -> None:
        """Read return values until the feed needs none."""
        try:
            while task_ids := watched.feed.wanted_tasks:
                load = watched.load_task
                values = await self._retry_until_available(self._source.read_values, watched.feed.key, task_ids)
                while watched.update_task is not None:
                    await asyncio.wait({watched.update_task})
                if watched.load_task is not load:
                    # A reload has started since, perhaps from another database.
                    continue
                with self._isolate_failure(watched):
                    watched.feed.add_values(task_ids, values, self._cursor())
        finally:
            watched.fetch_task = None

    async def _check_waiting(self) -> None:
        """Look up why runs do not proceed, as long as any are watched: one query for all that have not changed."""
        while True:
            await asyncio.sleep(WAITING_CHECK_SECONDS)
            resting = await self._find_resting()
            for start in range(0, len(resting), MAX_WAITING_RUNS):
                await self._read_waiting(resting[start : start + MAX_WAITING_RUNS])

    async def _find_resting(self) -> list[WatchedRun]:
        resting = []
        for number, watched in enumerate(list(self._runs.values()), 1):
            if _is_resting(watched):
                resting.append(watched)
            if number % MAX_WAITING_RUNS == 0:
                # 10,000 runs take more than 10 ms.
                await asyncio.sleep(0)
        return resting

    async def _read_waiting(self, resting: Sequence[WatchedRun]) -> None:
        changes = [watched.feed.changes for watched in resting]
        try:
            found = await self._source.read_waiting([watched.feed.key for watched in resting])
        except Unavailable as error:
            log.info("It can't be read why runs wait: %s", error)
            return
        for watched, before in zip(resting, changes, strict=True):
            if watched.feed.changes == before and self._runs.get(watched.feed.key) is watched:
                with self._isolate_failure(watched):
                    watched.feed.set_waiting(found.get(watched.feed.key), self._cursor())

    async def _retry_until_available(
        self, read: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Repeat a read until PostgreSQL answers. Clients keep their connections meanwhile."""
        while True:
            try:
                return await read(*args, **kwargs)
            except Unavailable as error:
                log.warning("A run can't be read, trying again in %g s: %s", RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)

    @contextmanager
    def _isolate_failure(self, watched: WatchedRun) -> Iterator[None]:
        """Keep an exception in the state of one run from the other runs of the batch."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 # the server must go on
            self._handle_failure(watched, error)

    def _handle_failure(self, watched: WatchedRun, error: Exception) -> None:
        log.error("Lost the state of run %s", watched.feed.key, exc_info=error)
        watched.feed.disconnect(CloseCode.INTERNAL, "The server lost the state of this run")
        self._discard(watched)


def _is_resting(watched: WatchedRun) -> bool:
    """Whether a run has not changed since the last call, and the next step is up to the scheduler."""
    run = watched.feed.run_state
    if watched.feed.changes != watched.checked_changes:
        watched.checked_changes, watched.is_at_rest = watched.feed.changes, None
        return False
    if run is None:
        return False
    if watched.is_at_rest is None:
        watched.is_at_rest = run.is_at_rest
    return watched.is_at_rest
