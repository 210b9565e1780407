"""What remains of frames for who may read a run, but not its XComs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from stream_server.frames import AnyFrame, Result


def withhold(frames: Sequence[AnyFrame]) -> list[AnyFrame]:
    """Return frames without the values in them; that there is a result is told."""
    return [_bare(frame) if isinstance(frame, Result) else frame for frame in frames]


def _bare(result: Result) -> Result:
    return replace(result, results={}, references={}, withheld=True)
