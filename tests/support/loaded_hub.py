"""A hub for tests, with database reads that a test completes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition, JournalRow
from stream_server.protocol.frames import Waiting
from stream_server.server.metrics import Metrics
from support.builders import KEY, History, types
from support.waiting import eventually_async

UNTIL_RUN = WatchOptions(until="run")


class Source:
    """A run source whose reads are futures that the test resolves, in the order of the reads."""

    def __init__(self) -> None:
        self.loads: list[asyncio.Future[tuple[RunState, JournalPosition]]] = []
        self.reads: list[asyncio.Future[ReturnValues]] = []
        self.histories: list[asyncio.Future[list[Transition] | None]] = []
        self.reconnects = 0
        self.lost_rows: set[JournalRow] = set()
        """Rows that the journal does not have any more, although it did not prune them."""

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        self.histories.append(asyncio.get_running_loop().create_future())
        return await self.histories[-1]

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        return cursor.row in self.lost_rows

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        self.loads.append(asyncio.get_running_loop().create_future())
        return await self.loads[-1]

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]

    async def read_waiting(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        return {}

    async def reconnect(self) -> None:
        self.reconnects += 1


class LoadedHub:
    """A hub with its source, and the history of its run."""

    def __init__(self) -> None:
        self.history = History()
        self.source = Source()
        self.hub = Hub(self.source, max_queued_bytes=100_000, observer=Metrics())
        self.hub.start(self.history.cursor())
        self._dispatched = len(self.history.journal)

    async def nth_load(self, number: int) -> asyncio.Future[tuple[RunState, JournalPosition]]:
        await eventually_async(lambda: len(self.source.loads) >= number)
        return self.source.loads[number - 1]

    async def load(self, number: int = 1) -> None:
        (await self.nth_load(number)).set_result((self.history.state(), self.history.cursor()))

    def dispatch(self) -> list[Transition]:
        """Dispatch the rows written since the last call."""
        batch = self.history.journal[self._dispatched :]
        self._dispatched = len(self.history.journal)
        self.hub.dispatch(batch, self.history.cursor())
        return batch


def taken(subscription: Subscription) -> list[str]:
    return types([wire.frame for wire in subscription.take()])


@asynccontextmanager
async def watching(loaded: LoadedHub, options: WatchOptions = UNTIL_RUN) -> AsyncIterator[Subscription]:
    """Watch the run; load it for the first subscription."""
    subscribing = asyncio.create_task(loaded.hub.subscribe(KEY, options))
    if not loaded.source.loads:
        await loaded.load()
    with closing(await subscribing) as subscription:
        yield subscription
