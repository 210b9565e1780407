"""The view of a stream, and its display. The streams of both clients share it."""

from __future__ import annotations

from stream_server.client.display import Display, open_display
from stream_server.client.errors import ClientError
from stream_server.client.frames import Chunk, Reset, Snapshot, StreamFrame
from stream_server.client.outcomes import Outcome
from stream_server.client.requests import RunKey
from stream_server.client.run_view import RunView
from stream_server.client.stream_state import StreamState


class ShownRun:
    """The view of a stream, and its display, if there is one."""

    def __init__(self, *, has_display: bool) -> None:
        self.view = RunView()
        self._display: Display | None = None
        if has_display:
            self.open_display()

    def open_display(self) -> None:
        if self._display is None:
            self._display = open_display()

    def record(self, frame: StreamFrame) -> None:
        """Apply a frame."""
        self.view.record(frame)
        if self._display is not None:
            self._display.update(self.view)

    def text_after(self, frame: StreamFrame, before: str) -> str:
        """Return the text after a frame. It is read only if the frame may have changed it."""
        return self.view.text if isinstance(frame, (Chunk, Reset, Snapshot)) else before

    def close(self) -> None:
        """Show the last state."""
        if self._display is not None:
            self._display.close(self.view)
            self._display = None

    def require_run(self, state: StreamState) -> RunKey:
        """Return the run.

        Raises:
            LookupError: No frame has arrived yet.
        """
        if state.run is None:
            raise LookupError("the run is known after the first frame of its stream")
        return state.run

    def require_outcome(self) -> Outcome:
        """Return the outcome as far as the stream has sent it.

        Raises:
            ClientError: The stream ended without one: it was closed, or resumed after its end.
        """
        if (outcome := self.view.outcome) is None:
            raise ClientError("the stream ended without an outcome: it was closed, or its cursor is that of its end")
        return outcome

    @property
    def lacks_values(self) -> bool:
        """Whether the outcome was sent before the cursor at which the stream was resumed."""
        end = self.view.end
        return end is not None and end.outcome != "none" and self.view.last_outcome is None
