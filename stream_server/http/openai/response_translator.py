"""Translation of frames to the events of a response. Pure.

A client resumes with the `sequence_number` of the last event that it has received. So the numbers follow from the
answer itself: those of the text are its length so far. They grow with each event, but not always by one.
"""

from __future__ import annotations

from stream_server.http.chat.agent_steps import Thought, ToolEnded, ToolStarted, join_thinking
from stream_server.http.chat.answer import Activity, Answer, Failed, Finished, Step
from stream_server.http.chat.answer_text import Append, Restart
from stream_server.http.openai.chunks import build_usage
from stream_server.http.openai.response_objects import ResponseHead, build_part, encode_named_event
from stream_server.http.openai.translator import BREAK
from stream_server.protocol.frames import AnyFrame
from stream_server.protocol.schema import Json

FIRST_EVENTS = 4
"""Number of events before the first text, with the numbers from 0 on."""


class ResponseTranslator:
    """Implements `stream_server.http.chat.translated_stream.Translator`.

    Args:
        head: What all versions of the response have in common.
        starting_after: Number of the last event that the client has received; -1 for none.
    """

    is_complete = False

    def __init__(self, head: ResponseHead, starting_after: int = -1) -> None:
        self._head, self._after = head, starting_after
        self._answer = Answer(keeps_thinking=True)
        self._text = ""
        self._skipped = max(0, starting_after - FIRST_EVENTS + 1)
        """Characters of the text that the client still has, and that come again."""

    def start(self) -> bytes:
        started = {"response": self._head.build_response("in_progress")}
        item = {"output_index": 0, "item": self._head.build_item(None, "in_progress")}
        events: tuple[tuple[str, Json], ...] = (
            ("response.created", started),
            ("response.in_progress", started),
            ("response.output_item.added", item),
            ("response.content_part.added", {**self._place, "part": build_part("")}),
        )
        return b"".join([self._encode(kind, number, members) for number, (kind, members) in enumerate(events)])

    def translate(self, frame: AnyFrame) -> bytes:
        return b"".join([self._translate_step(step) for step in self._answer.apply(frame)])

    def _translate_step(self, step: Step) -> bytes:
        match step:
            case Append():
                return self._append(step.text)
            case Restart():
                return self._append(BREAK + step.text if self._text else step.text)
            case Activity() | Thought() | ToolStarted() | ToolEnded():
                # A client resumes with the number of an event, which follows from the length of the text alone. The
                # thinking is in the complete response.
                return b""
            case Failed():
                return self._fail(step)
            case Finished():
                return self._finish(step)

    def _append(self, text: str) -> bytes:
        self._text += text
        new, self._skipped = text[self._skipped :], max(0, self._skipped - len(text))
        if not new:
            return b""
        return self._encode("response.output_text.delta", self._number, {**self._place, "delta": new, "logprobs": []})

    def _finish(self, step: Finished) -> bytes:
        item = {"output_index": 0, "item": self._head.build_item(self._text, "completed")}
        thinking, usage = join_thinking(self._answer.agent_steps), build_usage(step.value)
        response = self._head.build_response("completed", self._text, thinking=thinking, usage=usage)
        events: tuple[tuple[str, Json], ...] = (
            ("response.output_text.done", {**self._place, "text": self._text, "logprobs": []}),
            ("response.content_part.done", {**self._place, "part": build_part(self._text)}),
            ("response.output_item.done", item),
            ("response.completed", {"response": response}),
        )
        return b"".join(
            [self._encode(kind, self._number + 1 + index, members) for index, (kind, members) in enumerate(events)]
        )

    def _fail(self, step: Failed) -> bytes:
        if not step.is_final:
            # The number is that of the last text, from which the client can resume.
            members = {"code": step.code, "message": step.message, "param": None}
            return encode_named_event("error", self._number, members)
        failed = self._head.build_response("failed", self._text, error=build_response_error(step))
        return self._encode("response.failed", self._number + 1, {"response": failed})

    @property
    def _place(self) -> Json:
        return {"item_id": self._head.message_id, "output_index": 0, "content_index": 0}

    @property
    def _number(self) -> int:
        """Number of the event with the last text."""
        return FIRST_EVENTS - 1 + len(self._text)

    def _encode(self, kind: str, number: int, members: Json) -> bytes:
        return encode_named_event(kind, number, members) if number > self._after else b""


def build_response_error(failed: Failed) -> Json:
    """Return the `error` of a response. `code` must be one of OpenAI's, so that the reason is in the message."""
    return {"code": "server_error", "message": f"{failed.message} ({failed.code})"}
