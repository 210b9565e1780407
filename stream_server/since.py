"""From where on a client that comes back wants to hear everything. Pure."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.cursor import Cursor
from stream_server.errors import CursorError


class Since(NamedTuple):
    """From where on a client wants to hear every transition."""

    cursor: Cursor | None
    """Its place; `None` where what it gave is none."""

    unborn: bool = False
    """Whether the run did not exist then: the client knows nothing of it."""

    @classmethod
    def parse(cls, text: str | None) -> Since | None:
        """Read what a client gave as its place; `None` where it gave nothing."""
        if text is None:
            return None
        try:
            return cls(Cursor.parse(text))
        except CursorError:
            return cls(None)

    @property
    def ended(self) -> bool:
        """Whether the client has seen the end of its stream."""
        return self.cursor is not None and self.cursor.ended
