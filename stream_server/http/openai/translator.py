"""Translation of frames to the chunks of a completion. Pure."""

from __future__ import annotations

from stream_server.http.chat.agent_steps import AgentStep, Thought, ToolEnded, ToolStarted, describe_tool
from stream_server.http.chat.answer import Activity, Answer, Failed, Finished, Step
from stream_server.http.chat.answer_text import Append, Restart
from stream_server.http.openai.chunks import DONE, CompletionHead, build_error, build_usage, encode_event
from stream_server.protocol.frames import AnyFrame

BREAK = "\n\n"
"""What separates an answer from the text before it that is no longer valid. The API can't take text back."""


class CompletionTranslator:
    """Implements `stream_server.http.chat.translated_stream.Translator`.

    Args:
        head: What all chunks have in common.
        includes_usage: Whether the stream ends with the usage.
        shows_status: Whether the client is Open WebUI, which shows lines about the progress. Other clients may fail on
            events without `choices`.
    """

    is_complete = False

    def __init__(self, head: CompletionHead, *, includes_usage: bool, shows_status: bool) -> None:
        self._head, self._includes_usage, self._shows_status = head, includes_usage, shows_status
        self._answer = Answer()
        self._last_activity = ""
        self._has_reasoning = False
        self._section: str | None = None
        """Section of the thinking that was sent last; `None` after a tool call."""

        # With `include_usage`, each chunk has the member.
        self._members = {"usage": None} if includes_usage else {}

    def start(self) -> bytes:
        return self._head.build_chunk({"role": "assistant", "content": ""}, **self._members)

    def translate(self, frame: AnyFrame) -> bytes:
        return b"".join([self._translate_step(step) for step in self._answer.apply(frame)])

    def _translate_step(self, step: Step) -> bytes:
        match step:
            case Append():
                return self._build_text(step.text)
            case Restart():
                return self._build_text(BREAK + step.text)
            case Thought() | ToolStarted() | ToolEnded():
                return self._translate_agent_step(step)
            case Activity():
                return self._build_status(step.text, is_done=False)
            case Failed():
                error = encode_event(build_error(step.message, step.status, step.code))
                return self._finish_status() + error + DONE
            case Finished():
                return self._finish(step)

    def _finish(self, step: Finished) -> bytes:
        end = self._head.build_chunk({}, "stop", **self._members)
        usage = self._head.build_usage_chunk(build_usage(step.value)) if self._includes_usage else b""
        return self._finish_status() + end + usage + DONE

    def _translate_agent_step(self, step: AgentStep) -> bytes:
        if isinstance(step, Thought):
            return self._build_reasoning(step.section, step.text)
        # Open WebUI has a line of status for it. `tool_calls` would make clients run the tool.
        text = None if self._shows_status else describe_tool(step)
        return b"" if text is None else self._build_reasoning(None, text)

    def _build_reasoning(self, section: str | None, text: str) -> bytes:
        """Return a part of what clients show as thinking, apart from the text: the convention of DeepSeek."""
        continues = not self._has_reasoning or (section is not None and section == self._section)
        self._has_reasoning, self._section = True, section
        return self._head.build_chunk({"reasoning_content": text if continues else BREAK + text}, **self._members)

    def _build_text(self, text: str) -> bytes:
        return self._head.build_chunk({"content": text}, **self._members)

    def _build_status(self, text: str, *, is_done: bool) -> bytes:
        if not self._shows_status or (text == self._last_activity and not is_done):
            return b""
        self._last_activity = text
        data = {"description": text, "done": is_done}
        return encode_event({"event": {"type": "status", "data": data}})

    def _finish_status(self) -> bytes:
        return self._build_status(self._last_activity, is_done=True) if self._last_activity else b""
