"""Removes values from frames, for callers that may read a run but not its XComs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from stream_server.protocol.frames import AnyFrame, Chunk, Progress, Result


def redact(frames: Sequence[AnyFrame]) -> list[AnyFrame]:
    """Return the frames without the values in them. That there is a result, or output, stays visible."""
    return [_without_values(frame) for frame in frames]


def _without_values(frame: AnyFrame) -> AnyFrame:
    if isinstance(frame, Result):
        return replace(frame, results={}, references={}, map_indexes={}, withheld=True)
    if isinstance(frame, (Chunk, Progress)):
        return replace(frame, value=UNSET, withheld=True)
    return frame
