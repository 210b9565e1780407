"""Requests for human input that are open after some frames. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from stream_server.domain.human_input import WAITING_STATES, RequestKey
from stream_server.protocol.frames import AnyFrame, Reset, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered


class OpenRequests:
    """The open requests of a run."""

    def __init__(self) -> None:
        self._requests: dict[RequestKey, Input] = {}

    @property
    def requests(self) -> list[Input]:
        """The open requests, oldest first."""
        return [*self._requests.values()]

    def apply(self, frame: AnyFrame) -> bool:
        """Apply a frame. Return whether it can concern a request."""
        match frame:
            case Input():
                self._requests[frame.task_id, frame.map_index, frame.iteration] = frame
            case Reset():
                # Those that are open follow again.
                self._requests.clear()
            case InputAnswered() | TaskTransition() if not _keeps_request(frame):
                self._requests.pop((frame.task_id, frame.map_index, frame.iteration), None)
            case _:
                return False
        return True


def collect_open_requests(frames: Iterable[AnyFrame]) -> list[Input]:
    """Return the requests that are open after some frames."""
    collector = OpenRequests()
    for frame in frames:
        collector.apply(frame)
    return collector.requests


def drop_closed_requests(frames: list[AnyFrame]) -> list[AnyFrame]:
    """Return the frames without requests that are not open any more: a client that connects gets those, too."""
    requests = collect_open_requests(frames)
    return [one for one in frames if not isinstance(one, Input) or any(one is asks for asks in requests)]


def _keeps_request(frame: InputAnswered | TaskTransition) -> bool:
    """Whether a request for human input stays open, as far as a frame shows."""
    return isinstance(frame, TaskTransition) and frame.state in WAITING_STATES
