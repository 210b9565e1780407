"""The state of a client that follows the protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stream_server.domain.run_state import RETRACTING_STATES
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.domain.transition_frames import is_output
from stream_server.protocol.frames import AnyFrame, End, Failure, Reset, Result, RunTransition, Snapshot, TaskTransition
from stream_server.protocol.output_frames import Chunk
from support.builders import History


@dataclass
class Knowledge:
    """The state of a client that follows the protocol.

    The reason of a failure is left out: of several reasons, a later client may get another one.
    """

    run: str | None = None
    tasks: dict[tuple[str, int], tuple[int, str | None]] = field(default_factory=dict)
    output: list[tuple[str, int, int, int]] = field(default_factory=list)
    outcome: tuple[str, dict[str, bytes]] | None = None
    end: tuple[str | None, str] | None = None

    def copy(self) -> Knowledge:
        return Knowledge(self.run, dict(self.tasks), list(self.output), self.outcome, self.end)

    def receive(self, frames: Iterable[AnyFrame]) -> None:
        for frame in frames:
            self._receive(frame)

    def _receive(self, frame: AnyFrame) -> None:
        if isinstance(frame, Reset):
            self.output, self.outcome = [], None
        elif isinstance(frame, Snapshot):
            self.run = frame.run.state
            self.tasks = {(one.task_id, one.map_index): (one.try_number, one.state) for one in frame.tasks}
        elif isinstance(frame, RunTransition):
            self.run = frame.state
        elif isinstance(frame, TaskTransition):
            if frame.map_index >= 0:
                self.tasks.pop((frame.task_id, -1), None)
            self.tasks[frame.task_id, frame.map_index] = (frame.try_number, frame.state)
        elif isinstance(frame, Chunk):
            self.output.append((frame.task_id, frame.map_index, frame.try_number, frame.index))
        elif isinstance(frame, Result):
            self.outcome = ("result", {task_id: bytes(value) for task_id, value in frame.results.items()})
        elif isinstance(frame, Failure):
            self.outcome = ("failure", {})
        elif isinstance(frame, End):
            self.end = (frame.state, frame.outcome)


def history_rows(history: History) -> list[Transition]:
    """Return the rows of the journal as `RunSource.read_history` returns them."""
    return [_as_read(history, row) for row in history.journal]


def _as_read(history: History, row: Transition) -> Transition:
    if row.kind is not TransitionKind.TASK or row.state not in RETRACTING_STATES:
        return row
    earlier = [one for one in history.journal if is_output(one) and one.seq < row.seq]
    had_output = any((one.task_id, one.map_index) == (row.task_id, row.map_index) for one in earlier)
    return row._replace(had_output=had_output)
