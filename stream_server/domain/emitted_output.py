"""The output that the tasks of a run have emitted in their current tries."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from stream_server.protocol.output_frames import (
    AnyOutputFrame,
    Chunk,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)

FRAME_OVERHEAD_BYTES = 300
"""Approximate memory of a frame, without its value."""

InstanceKey = tuple[str, int, int | None]
"""A task, a `map_index`, and the iteration of the loop around the task."""


class _OutputState(NamedTuple):
    """How far the output of a task instance has come."""

    try_number: int
    next_index: int
    batch: int
    """Fingerprint of the last batch."""


class RunOutput:
    """The current output of a run in the order of the journal.

    Args:
        limit: Approximate number of bytes that are kept. Above it the oldest frames are dropped, of whatever task.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[AnyOutputFrame] = deque()
        self._bytes = 0
        self._states: dict[InstanceKey, _OutputState] = {}
        self.retracting_rows: set[int] = set()
        """`seq` of rows in which a try restarted its output, as a rescheduled one does. They retract earlier output."""

    @property
    def frames(self) -> Sequence[AnyOutputFrame]:
        """The current output that is kept."""
        return self._frames

    def get_try_number(self, key: InstanceKey) -> int | None:
        """Return the try in which a task instance emitted its current output."""
        state = self._states.get(key)
        return None if state is None else state.try_number

    def add_frames(self, frames: Sequence[AnyOutputFrame], batch: int) -> tuple[Sequence[AnyOutputFrame], bool]:
        """Add a batch of output that a task instance emitted in its current try.

        Args:
            frames: The batch.
            batch: Its fingerprint, to recognise a batch that was written twice: tasks repeat a request to the Execution
                API if the response is lost.

        Returns:
            The frames that are new, and whether the batch retracts earlier output of the try.
        """
        if not frames:
            return (), False
        first, last = frames[0], frames[-1]
        key = instance_key(first)
        before = self._states.get(key)
        retracts = before is not None and first.index < before.next_index
        if before is not None and retracts:
            if before.batch == batch:
                return (), False
            self.retracting_rows.add(first.seq)
            self.retract(key)
        self._states[key] = _OutputState(first.try_number, last.index + 1, batch)
        self._frames.extend(frames)
        self._bytes += sum(map(_frame_size, frames))
        while self._bytes > self._limit:
            self._bytes -= _frame_size(self._frames.popleft())
        return frames, retracts

    def retract(self, key: InstanceKey) -> bool:
        """Drop the output of a task instance, and return whether there was any."""
        if self._states.pop(key, None) is None:
            return False
        self._frames = deque(frame for frame in self._frames if instance_key(frame) != key)
        self._bytes = sum(map(_frame_size, self._frames))
        return True


def instance_key(frame: AnyOutputFrame) -> InstanceKey:
    """Return the task instance that emitted a frame."""
    return frame.task_id, frame.map_index, frame.iteration


def _frame_size(frame: AnyOutputFrame) -> int:
    return FRAME_OVERHEAD_BYTES + _value_size(frame)


def _value_size(frame: AnyOutputFrame) -> int:
    match frame:
        case Chunk(value=value) | Thinking(value=value) if value is not msgspec.UNSET:
            return len(value)
        case ToolCall(value=ToolRequest() as request):
            return len(request.arguments)
        case ToolResult(value=ToolResponse() as response):
            return len(response.error or "") + (0 if response.result is msgspec.UNSET else len(response.result))
        case _:
            return 0
