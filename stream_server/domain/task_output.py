"""What the tasks of a run have said so far, in the tries that stand. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from stream_server.protocol.frames import AnyOutputFrame, Chunk

FRAME_OVERHEAD_BYTES = 300
"""About what a frame takes in memory beside its value."""

InstanceKey = tuple[str, int]
"""A task and a `map_index`."""


class _OutputState(NamedTuple):
    """A task instance that has said something."""

    try_number: int
    next_index: int
    batch: int
    """Fingerprint of the batch that came last."""


class RunOutput:
    """What stands of all that was said, in the order in which it was written.

    Args:
        limit: Bytes that are kept, about; beyond it the oldest is forgotten, whoever said it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[AnyOutputFrame] = deque()
        self._bytes = 0
        self._states: dict[InstanceKey, _OutputState] = {}
        self.retracting_rows: set[int] = set()
        """Rows with which a try began to say other things than before, as one does that was rescheduled."""

    @property
    def frames(self) -> Sequence[AnyOutputFrame]:
        """All that stands and is kept."""
        return self._frames

    def get_try_number(self, place: InstanceKey) -> int | None:
        """Return the try in which a task instance has said something that stands."""
        speaker = self._states.get(place)
        return None if speaker is None else speaker.try_number

    def add_frames(self, frames: Sequence[AnyOutputFrame], batch: int) -> tuple[Sequence[AnyOutputFrame], bool]:
        """Take in what a task instance has said at once, in the try that stands.

        Args:
            frames: What it has said.
            batch: Fingerprint of it, by which a batch is known that was written twice: the Execution API is asked
                again where its answer is lost.

        Returns:
            What is new of it, and whether it takes back what the try had said before.
        """
        if not frames:
            return (), False
        first, last = frames[0], frames[-1]
        place = first.task_id, first.map_index
        before = self._states.get(place)
        takes_back = before is not None and first.index < before.next_index
        if takes_back:
            assert before is not None, "it has spoken"
            if before.batch == batch:
                return (), False
            self.retracting_rows.add(first.seq)
            self.retract(place)
        self._states[place] = _OutputState(first.try_number, last.index + 1, batch)
        self._frames.extend(frames)
        self._bytes += sum(map(_frame_size, frames))
        while self._bytes > self._limit:
            self._bytes -= _frame_size(self._frames.popleft())
        return frames, takes_back

    def retract(self, place: InstanceKey) -> bool:
        """Forget what a task instance has said; false if it had said nothing."""
        if self._states.pop(place, None) is None:
            return False
        self._frames = deque(frame for frame in self._frames if (frame.task_id, frame.map_index) != place)
        self._bytes = sum(map(_frame_size, self._frames))
        return True


def _frame_size(frame: AnyOutputFrame) -> int:
    if isinstance(frame, Chunk):
        return FRAME_OVERHEAD_BYTES + (0 if frame.value is msgspec.UNSET else len(frame.value))
    return FRAME_OVERHEAD_BYTES
