"""Clients of one run, on the server's own hub: one that watches, one that joins now, and one that resumes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.errors import UnknownTask
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import ResumePoint, ResumeToken
from stream_server.protocol.frames import (
    AnyFrame,
    End,
    Failure,
    Reset,
    Result,
    RunTransition,
    Snapshot,
    TaskTransition,
)
from support.outcome_tables import KEY, RunTables, Tables


class ClientOutcome(NamedTuple):
    """A `result` or `failure` frame."""

    kind: str
    results: dict[str, Any] | None = None
    map_indexes: dict[str, list[int]] | None = None
    failure: Failure | None = None

    @property
    def essentials(self) -> tuple[object, ...]:
        """What must be the same for all clients: of several causes of a failure, a client keeps the first one."""
        return self.kind, self.results, self.map_indexes


class ClientEnd(NamedTuple):
    """An `end` frame."""

    state: str | None
    outcome: str
    reason: str | None
    task_id: str | None


@dataclass
class Knowledge:
    """What a client knows that follows the protocol."""

    run: tuple[str | None, int] | None = None
    tasks: dict[tuple[str, int, int | None], tuple[str | None, int]] = field(default_factory=dict)
    result_tasks: tuple[str, ...] = ()
    outcome: ClientOutcome | None = None
    end: ClientEnd | None = None

    def copy(self) -> Knowledge:
        return replace(self, tasks=dict(self.tasks))

    def receive(self, frame: AnyFrame) -> None:
        """Apply a frame."""
        if isinstance(frame, Reset):
            self.outcome = None
        elif isinstance(frame, Snapshot):
            self.run = frame.run.state, frame.run.clear_number
            self.tasks = {
                (one.task_id, one.map_index, one.iteration): (one.state, one.try_number) for one in frame.tasks
            }
            self.result_tasks = tuple(frame.result_tasks)
        elif isinstance(frame, RunTransition):
            self.run = frame.state, frame.clear_number
        elif isinstance(frame, TaskTransition):
            if frame.map_index >= 0:
                self.tasks.pop((frame.task_id, -1, frame.iteration), None)
            self.tasks[frame.task_id, frame.map_index, frame.iteration] = frame.state, frame.try_number
        elif isinstance(frame, Result):
            assert self.outcome is None, f"a second outcome without a reset: {frame}"
            results = {task_id: json.loads(bytes(value)) for task_id, value in frame.results.items()}
            self.outcome = ClientOutcome("result", results, getattr(frame, "map_indexes", None) or {})
        elif isinstance(frame, Failure):
            assert self.outcome is None, f"a second outcome without a reset: {frame}"
            self.outcome = ClientOutcome("failure", failure=frame)
        elif isinstance(frame, End):
            reason, task_id = getattr(frame, "reason", None), getattr(frame, "task_id", None)
            self.end = ClientEnd(frame.state, frame.outcome, reason, task_id)

    @property
    def essentials(self) -> tuple[object, ...]:
        """What must be the same for all clients."""
        outcome = None if self.outcome is None else self.outcome.essentials
        return self.run, self.tasks, outcome, self.end

    def differs_from(self, tables: Tables) -> str | None:
        """Return what differs from the tables; `None` if nothing does."""
        run = (tables.run.state, tables.run.clear_number)
        if self.run != run:
            return f"the run is {run}, not {self.run}"
        tasks = {(task, index, row.iteration): (row.state, row.try_number) for task, index, row in tables.rows}
        for instance in sorted(tasks.keys() | self.tasks.keys(), key=str):
            if tasks.get(instance) != self.tasks.get(instance):
                return f"{instance} is {tasks.get(instance)}, not {self.tasks.get(instance)}"
        return None


class _Nobody:
    """Counts nothing (`HubObserver`)."""

    def record_dispatch(self, read: ReadTiming) -> None:
        pass

    def record_join(self, seconds: float, *, resumed: bool) -> None:
        pass

    def record_close(self, code: CloseCode) -> None:
        pass


@dataclass
class Client:
    """A client that has one stream."""

    subscription: Subscription
    knowledge: Knowledge
    frames: list[str] = field(default_factory=list)
    checkpoints: list[tuple[Knowledge, ResumeToken]] = field(default_factory=list)
    """What it knew with each cursor that it has received."""

    @property
    def has_ended(self) -> bool:
        return self.knowledge.end is not None

    def receive(self, *, keep: bool = False) -> None:
        """Apply all frames that are due.

        Args:
            keep: Whether to keep a checkpoint for each cursor.
        """
        for wire in self.subscription.take():
            self.frames.append(type(wire.frame).__name__)
            self.knowledge.receive(wire.frame)
            if keep and wire.token is not None and not wire.token.has_ended:
                self.checkpoints.append((self.knowledge.copy(), wire.token))
        assert self.subscription.closed is None, f"{self.subscription.closed}"


class Server:
    """A hub that reads the run from its tables, as a replica of the server does."""

    def __init__(self, tables: RunTables) -> None:
        self._tables = tables
        self._hub = Hub(tables, max_queued_bytes=1 << 24, observer=_Nobody())
        self._hub.start(tables.position)

    async def dispatch(self, batch: Sequence[Transition]) -> None:
        """Publish a batch, and all that must be read because of it."""
        self._hub.dispatch(batch, self._tables.position)
        await self._settle()

    async def subscribe(
        self, options: WatchOptions, resume: tuple[Knowledge, ResumeToken] | None = None
    ) -> Client | None:
        """Return a new client; `None` if the DAG does not have its result task."""
        point = None if resume is None else ResumePoint(resume[1])
        try:
            subscription = await self._hub.subscribe(KEY, options, resume_from=point)
        except UnknownTask:
            return None
        await self._settle()
        client = Client(subscription, Knowledge() if resume is None else resume[0].copy())
        client.receive(keep=resume is None)
        return client

    async def close(self) -> None:
        await self._hub.close()

    async def _settle(self) -> None:
        """Wait until everything is read that subscriptions need."""
        for _ in range(200):
            await asyncio.sleep(0)
            is_loading = self._hub.is_watched(KEY) and self._hub.run_state(KEY) is None
            if not is_loading and not self._hub.is_reading_values(KEY):
                return
        raise AssertionError("the server does not stop reading")


def find_differences(live: Knowledge, others: Iterable[tuple[str, Client]], tables: Tables) -> Iterator[str]:
    """Yield what clients know differently from each other, or from the tables."""
    if difference := live.differs_from(tables):
        yield f"watching: {difference}"
    for name, other in others:
        if difference := other.knowledge.differs_from(tables):
            yield f"{name}: {difference}"
        if other.knowledge.essentials != live.essentials:
            yield f"{name} knows {other.knowledge.essentials[2:]}, watching {live.essentials[2:]}"


def select_tokens(clients: Collection[Client]) -> list[tuple[Knowledge, ResumeToken]]:
    """Return all points from which a client can resume."""
    return [point for client in clients for point in client.checkpoints]
