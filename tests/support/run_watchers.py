"""Clients of one run over each transport, which record every frame with its cursor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Generic, TypeVar

from stream_server.domain.run_state import RunKey
from support.run_knowledge import RunKnowledge, Tables
from support.stream_receivers import Received, ReceivedFrames, StreamRequest, Way, receive
from support.streams import DEADLINE, Frame, stream_path
from support.waiting import eventually_async

Knowledge = TypeVar("Knowledge", bound=RunKnowledge)


class StreamWatcher(Generic[Knowledge]):
    """A client that follows a stream, and records its frames.

    Args:
        way: Server and transport.
        request: The stream.
        knowledge: What the client knows; each frame is applied to it.
        cursor: Where it resumes.
    """

    def __init__(self, way: Way, request: StreamRequest, knowledge: Knowledge, cursor: str | None) -> None:
        self.name = f"{way!r}{'' if cursor is None else ', resumed'}"
        self.received: list[Received] = []
        self.knowledge = knowledge
        self._task = asyncio.create_task(self._follow(receive(way, request, cursor)))

    @property
    def frames(self) -> list[Frame]:
        return [one.frame for one in self.received]

    @property
    def is_done(self) -> bool:
        """Whether its stream has ended. Raises what it failed with."""
        if self._task.done():
            self._task.result()
        return self._task.done()

    async def has_started(self) -> None:
        """Wait for its first frame, or the end of its stream."""
        await eventually_async(lambda: bool(self.received) or self.is_done, DEADLINE)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _wait_until(self, condition: Callable[[], bool], expected: object) -> None:
        try:
            await eventually_async(lambda: condition() or self.is_done, DEADLINE)
            assert condition()
        except AssertionError as error:
            known = f"{self.name}\nknows    {self.knowledge}\nexpected {expected}\n{self._describe()}"
            raise AssertionError(known) from error

    def _describe(self) -> str:
        return "\n".join(f"  {json.dumps(frame)[:300]}" for frame in self.frames)

    async def _follow(self, received: ReceivedFrames) -> None:
        try:
            async for one in received:
                self.received.append(one)
                self.knowledge.apply(one.frame)
        finally:
            await received.aclose()


class RunWatcher(StreamWatcher[RunKnowledge]):
    """A client that follows a run until its stream ends.

    Args:
        way: Server and transport.
        key: The run.
        options: `until`, `result` and `confirm`.
        after: What it knows, and the cursor with which it resumes.
    """

    def __init__(
        self, way: Way, key: RunKey, options: dict[str, str], after: tuple[RunKnowledge, str] | None = None
    ) -> None:
        self.start, cursor = (RunKnowledge(), None) if after is None else after
        super().__init__(way, _request_of(key, options), self.start.copy(), cursor)

    async def knows_the_same(self, other: RunWatcher) -> None:
        """Wait until it knows the same as another client, but for the cause of a failure."""
        await self._wait_until(lambda: self.knowledge.essentials == other.knowledge.essentials, other.knowledge)

    async def knows(self, tables: Tables) -> None:
        """Wait until it knows what Airflow's tables have."""
        await self._wait_until(lambda: self.knowledge.tables == tables, tables)

    async def knows_why_it_waits(self, waiting: dict[str, object] | None) -> None:
        """Wait until it knows why the run waits; `None` if a frame has withdrawn the reason."""
        await self._wait_until(
            lambda: self.knowledge.waiting == waiting and "waiting" in {frame["type"] for frame in self.frames}, waiting
        )

    async def has_ended(self) -> None:
        """Wait for the end of its stream."""
        await asyncio.wait_for(asyncio.shield(self._task), DEADLINE)
        assert self.knowledge.end is not None, f"{self.name}: {self._describe()}"

    def points(self) -> list[tuple[RunKnowledge, str]]:
        """Return what it knew at each frame with a cursor, and that cursor; not at the end, which is final."""
        knowledge, found = self.start.copy(), []
        for frame, cursor in self.received:
            knowledge.apply(frame)
            if cursor is not None and frame["type"] != "end":
                found.append((knowledge.copy(), cursor))
        return found


def _request_of(key: RunKey, options: dict[str, str]) -> StreamRequest:
    message: dict[str, object] = {"dag_id": key.dag_id, "run_id": key.run_id, **options}
    if "result" in message:
        message["result"] = [message["result"]]
    return StreamRequest(stream_path(key), [*options.items()], message)
