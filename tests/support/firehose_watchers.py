"""Clients that follow a run on a stream of many runs."""

from __future__ import annotations

from collections.abc import Mapping

from stream_server.domain.run_state import RunKey
from support.run_knowledge import RunKnowledge, Tables
from support.run_watchers import StreamWatcher
from support.stream_receivers import StreamRequest, Way
from support.streams import Frame

FRAME_TYPES = ("task", "run", "chunk", "progress")

TRANSITION_TYPES = frozenset({*FRAME_TYPES, "reset"})


class FirehoseKnowledge(RunKnowledge):
    """The state of a run and the output of its tasks, as far as transitions have shown them.

    A client that has received all transitions since the run was created knows the whole run.
    """

    is_incomplete: bool = False
    """Whether there may be instances that it does not know: a `reset` requires it to ask for them anew."""

    def complete(self, instances: Mapping[tuple[str, int], tuple[str | None, int]]) -> None:
        """Take up the answer to what it had to ask for anew."""
        self.instances = dict(instances.items())
        self.is_incomplete = False

    def _apply_reset(self, frame: Frame) -> None:
        assert (frame["reason"], "run_id" in frame) == ("run_changed", True), f"nothing was lost: {frame}"
        self.instances = {}
        self.is_incomplete = True

    def _apply_run(self, frame: Frame) -> None:
        super()._apply_run(frame)
        if frame["state"] is None:
            self.__init__()  # type: ignore[misc]
            self.is_incomplete = False


class FirehoseWatcher(StreamWatcher[FirehoseKnowledge]):
    """A client of a stream of many runs whose filter names the DAG of a run.

    Args:
        way: Server and transport. There is no such stream on a WebSocket of its own; it is multiplexed there.
        key: The run. No other one of the DAG exists.
        after: A client, and the number of its frame with whose cursor this one resumes.
    """

    def __init__(self, way: Way, key: RunKey, after: tuple[FirehoseWatcher, int] | None = None) -> None:
        if way.transport == "websocket":
            way = way._replace(transport="multiplex")
        self._after = after
        knowledge, cursor = FirehoseKnowledge(), None
        if after is not None:
            other, number = after
            knowledge.apply_all(other.frames[: number + 1])
            cursor = other.received[number].cursor
            assert cursor is not None, "the client resumes at a frame with a cursor"
        super().__init__(way, _request_of(way, key), knowledge, cursor)
        self.name = f"many runs, {self.name}"

    @property
    def transitions(self) -> list[Frame]:
        """All transitions that it has received, in the order of the journal."""
        return _sorted_transitions(self.frames)

    @property
    def cursors(self) -> list[int]:
        """Numbers of its frames that have a cursor. The first frame of each stream has one."""
        return [number for number, one in enumerate(self.received) if one.cursor is not None]

    async def knows(self, tables: Tables, instances: Mapping[tuple[str, int], tuple[str | None, int]]) -> None:
        """Wait until it knows what Airflow's tables have."""
        await self._wait_until(lambda: self._knows(tables, instances), tables)
        if self.knowledge.is_incomplete:
            self.knowledge.complete(instances)

    async def has_output_of(self, run: RunKnowledge) -> None:
        """Wait until it has the output that a client of the run has. That of tries that are given up stays."""
        await self._wait_until(
            lambda: all(
                output.items() <= self.knowledge.output.get(of_try, {}).items() for of_try, output in run.output.items()
            ),
            run.output,
        )

    async def has_continued(self) -> None:
        """Wait until it has each transition since its cursor once, as the client that it resumes from has."""
        assert self._after is not None, "it has a client that it resumes from"
        other, number = self._after

        def missed() -> list[Frame]:
            return _sorted_transitions(other.frames[number + 1 :])

        await self._wait_until(lambda: bool(self.received) and self.transitions == missed(), missed())
        assert self.frames[0]["type"] == "resumed"

    def _knows(self, tables: Tables, instances: Mapping[tuple[str, int], tuple[str | None, int]]) -> bool:
        if not self.knowledge.is_incomplete:
            return self.knowledge.tables == tables
        return self.knowledge.run == tables.run and self.knowledge.instances.items() <= instances.items()


def _request_of(way: Way, key: RunKey) -> StreamRequest:
    types = [("type", name) for name in FRAME_TYPES]
    message = {"dag_id": [key.dag_id], "type": [*FRAME_TYPES]}
    if way.transport == "ndjson":
        return StreamRequest(f"/api/v2/dags/{key.dag_id}/stream", types, message)
    return StreamRequest("/api/v2/stream", [("dag_id", key.dag_id), *types], message)


def _sorted_transitions(frames: list[Frame]) -> list[Frame]:
    found = [frame for frame in frames if frame["type"] in TRANSITION_TYPES]
    # A reset has no number. Each of them is the same.
    return sorted(found, key=lambda frame: (frame.get("seq", 0), frame.get("index", 0)))
