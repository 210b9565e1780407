"""Removes content from frames, for callers that may read a run but not all of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from stream_server.protocol.frames import AnyFrame, Result
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import AnyOutputFrame

_KEPT = ("dag_id", "run_id", "seq", "at", "task_id", "map_index", "try_number", "asked_at", "answered_at")


def redact(frames: Sequence[AnyFrame]) -> list[AnyFrame]:
    """Return the frames without the values in them. That there is a result, or output, stays visible."""
    return [_without_values(frame) for frame in frames]


def redact_inputs(frames: Sequence[AnyFrame]) -> list[AnyFrame]:
    """Return the frames without questions and answers. That there are some stays visible."""
    return [_without_input(frame) for frame in frames]


def _without_values(frame: AnyFrame) -> AnyFrame:
    if isinstance(frame, Result):
        return replace(frame, results={}, references={}, map_indexes={}, withheld=True)
    if isinstance(frame, AnyOutputFrame):
        return replace(frame, value=UNSET, withheld=True)
    return frame


def _without_input(frame: AnyFrame) -> AnyFrame:
    if not isinstance(frame, (Input, InputAnswered)):
        return frame
    # What is kept is named: members that are added later are withheld.
    kept = {name: getattr(frame, name) for name in _KEPT if hasattr(frame, name)}
    return type(frame)(**kept, withheld=True)
