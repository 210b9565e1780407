"""What tasks do, as activity messages: one for each task instance and kind, which later ones replace. Pure."""

from __future__ import annotations

import msgspec

from stream_server.http.agui.run_document import MAX_TASKS
from stream_server.http.chat.answer import describe_activity, name_instance
from stream_server.protocol.frames import AnyFrame, RunTransition, TaskTransition, Waiting
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import Progress
from stream_server.protocol.schema import Json

WAITING = "waiting"
NOT_WAITING: Json = {"text": None, "reason": None}


class Activities:
    """The activity messages of a run.

    Args:
        message_id: Id of the answer, which the ids of these messages begin with.
    """

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._names: set[str] = set()
        self._is_waiting = False

    def translate(self, frame: AnyFrame) -> list[Json]:
        """Return the events of a frame."""
        match frame:
            case Progress() if frame.value is not msgspec.UNSET:
                return self._show("progress", frame, msgspec.to_builtins(frame.value))
            case Input():
                return self._show("input", frame, {"text": describe_activity(frame)})
            case InputAnswered():
                chosen = {} if frame.withheld else {"chosen_options": frame.chosen_options}
                return self._show("input", frame, {"text": describe_activity(frame), **chosen})
            case Waiting():
                return self._set_waiting({"text": describe_activity(frame), "reason": frame.reason})
            case TaskTransition() | RunTransition():
                # A run that proceeds waits no longer.
                return self._set_waiting(NOT_WAITING)
            case _:
                return []

    def _set_waiting(self, content: Json) -> list[Json]:
        was_waiting, self._is_waiting = self._is_waiting, content["reason"] is not None
        return [self._build(WAITING, WAITING, content)] if was_waiting or self._is_waiting else []

    def _show(self, kind: str, frame: Progress | Input | InputAnswered, content: Json) -> list[Json]:
        name = f"{kind}/{name_instance(frame)}"
        if name not in self._names and len(self._names) >= MAX_TASKS:
            return []
        self._names.add(name)
        return [self._build(kind, name, {"task_id": frame.task_id, "map_index": frame.map_index, **content})]

    def _build(self, kind: str, name: str, content: Json) -> Json:
        return {
            "type": "ACTIVITY_SNAPSHOT",
            "messageId": f"{self._message_id}/{name}",
            "activityType": kind,
            "content": content,
            "replace": True,
        }
