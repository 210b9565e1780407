"""Where a stream continues after a lost connection, and which frames the server sends twice then."""

from __future__ import annotations

import msgspec

from stream_server.client.frames import UnknownFrame, parse_leniently
from stream_server.protocol.frame_members import Frame
from stream_server.protocol.frames import Reset, Snapshot
from stream_server.protocol.output_frames import OutputFrame


class _FrameCursor(msgspec.Struct):
    """The cursor of a frame, without the rest of it."""

    cursor: str | None = None


_OUTPUT_IDENTITY = ("dag_id", "run_id", "task_id", "map_index", "iteration", "try_number", "index")
"""Members that identify an item of output, also in a stream of many runs. Frames of all types share the positions."""

_cursor_decoder = msgspec.json.Decoder(_FrameCursor)


class ResumeState:
    """The last cursor of a stream, and the frames after it."""

    def __init__(self, cursor: str | None = None) -> None:
        self.cursor = cursor
        # Frames after the cursor: the server sends them again if the connection is lost now.
        self._seen_since_cursor: set[tuple[object, ...]] = set()

    def record_if_new(self, frame: Frame | UnknownFrame, text: str | bytes) -> bool:
        """Record a frame and its JSON text. Return false if it is a repetition."""
        identity = identity_of(frame)
        is_new = identity not in self._seen_since_cursor
        if identity is not None:
            self._seen_since_cursor.add(identity)
        if isinstance(frame, (Reset, Snapshot)):
            self._seen_since_cursor.clear()
        cursor = _decode_cursor(text)
        if cursor is not None:
            self.cursor = cursor
            self._seen_since_cursor.clear()
        return is_new


def _decode_cursor(text: str | bytes) -> str | None:
    try:
        return _cursor_decoder.decode(text).cursor
    except (msgspec.MsgspecError, RecursionError):
        # The line was decoded leniently, too.
        return msgspec.convert(parse_leniently(text), _FrameCursor).cursor


def identity_of(frame: Frame | UnknownFrame) -> tuple[object, ...] | None:
    """Return a key that identifies a frame in its stream; `None` for frames that may repeat."""
    if isinstance(frame, OutputFrame):
        # Not by `seq`: a row of the journal may contain several, and the output of a try may be recorded twice.
        return tuple(getattr(frame, name) for name in _OUTPUT_IDENTITY)
    if isinstance(frame, UnknownFrame):
        names = ("type", *_OUTPUT_IDENTITY) if "index" in frame.members else ("type", "seq")
        # As text, since a later version may send lists and objects.
        return None if frame.seq is None else tuple(repr(frame.members.get(name)) for name in names)
    seq = getattr(frame, "seq", None)
    return None if seq is None else (type(frame), seq)
