"""Translation of frames to chunks of a UI message stream. Pure.

A chunk of an unknown type ends the chat of a client with an error. So only types are sent that version 5 of the AI SDK
knows, and `reset-step`, which version 7 has added, only to clients that request it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.http.chat.agent_steps import AgentStep, Thought, ToolEnded, ToolStarted
from stream_server.http.chat.answer import Activity, Answer, Failed, Finished, Step, name_instance
from stream_server.http.chat.answer_text import Append, Restart
from stream_server.protocol.frames import AnyFrame, Result, Snapshot, TaskInfo, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import Progress
from stream_server.protocol.schema import Json

DONE = b"data: [DONE]\n\n"

RUN_BY_TASK = {"providerExecuted": True, "dynamic": True}
"""Members of tool calls: the client does not run the tool, and need not know it."""


class UiMessageTranslator:
    """Implements `stream_server.http.chat.translated_stream.Translator`.

    Args:
        key: The run.
        resets_steps: Whether the client knows `reset-step`.
    """

    is_complete = False

    def __init__(self, key: RunKey, *, resets_steps: bool) -> None:
        self._key, self._resets_steps = key, resets_steps
        self._answer = Answer(keeps_agent_steps=resets_steps)
        self._text_count = 0
        self._is_text_open = False
        self._open_sections: dict[str, None] = {}
        """Sections of thinking that have not ended, of all task instances."""

        self._data: dict[tuple[str, str], Json] = {}
        """The data parts of the message, by type and id."""

    def start(self) -> bytes:
        metadata = {"dag_id": self._key.dag_id, "run_id": self._key.run_id}
        start = {"type": "start", "messageId": self._key.run_id, "messageMetadata": metadata}
        return _encode([start, {"type": "start-step"}])

    def translate(self, frame: AnyFrame) -> bytes:
        chunks = [*self._build_data(frame)]
        for step in self._answer.apply(frame):
            chunks += self._translate_step(step)
        is_last = bool(chunks) and chunks[-1]["type"] in {"finish", "error"}
        return _encode(chunks) + (DONE if is_last else b"")

    def _build_data(self, frame: AnyFrame) -> Iterator[Json]:
        match frame:
            case Snapshot():
                for task in frame.tasks:
                    if task.state is not None:
                        yield self._keep(_build_task(task))
            case TaskTransition():
                yield self._keep(_build_task(frame))
            case Progress() if frame.value is not msgspec.UNSET:
                yield self._keep(_build_part("progress", frame, msgspec.to_builtins(frame.value)))
            case Input():
                yield self._keep({"type": "data-input", "id": name_instance(frame), "data": _list_members(frame)})
            case InputAnswered():
                part_id = name_instance(frame)
                question = self._data.get(("data-input", part_id), {"data": {}})["data"]
                data = {**question, "answered": _list_members(frame)}
                yield self._keep({"type": "data-input", "id": part_id, "data": data})
            case Result() if not frame.withheld:
                # Values as JSON, without decoding them.
                data = {"results": frame.results, "references": frame.references}
                yield {"type": "data-result", "id": "result", "data": data}

    def _keep(self, chunk: Json) -> Json:
        self._data[chunk["type"], chunk["id"]] = chunk
        return chunk

    def _translate_step(self, step: Step) -> list[Json]:
        match step:
            case Append():
                return self._append(step.text)
            case Restart():
                return self._restart(step.text)
            case Thought() | ToolStarted() | ToolEnded():
                return self._translate_agent_step(step)
            case Activity():
                # Clients get the states of tasks themselves.
                return []
            case Failed():
                return [*self._end_parts(), {"type": "error", "errorText": step.message}]
            case Finished():
                return [*self._end_parts(), {"type": "finish-step"}, {"type": "finish", "finishReason": "stop"}]

    def _translate_agent_step(self, step: AgentStep) -> list[Json]:
        match step:
            case Thought():
                part = {"id": step.section}
                begins = step.section not in self._open_sections
                # Text that was open ends, so that the parts are in the order in which they came.
                chunks: list[Json] = [*self._end_text(), {"type": "reasoning-start", **part}] if begins else []
                self._open_sections[step.section] = None
                return [*chunks, {"type": "reasoning-delta", **part, "delta": step.text}]
            case ToolStarted():
                call = {"toolCallId": step.call_id, "toolName": step.name, "input": step.arguments}
                return [*self._end_parts(), {"type": "tool-input-available", **call, **RUN_BY_TASK}]
            case ToolEnded(name=None):
                # An output without a call is an error for clients.
                return []
            case ToolEnded():
                outcome: Json = {"type": "tool-output-available", "output": step.result}
                if step.error is not None:
                    outcome = {"type": "tool-output-error", "errorText": step.error}
                return [{**outcome, "toolCallId": step.call_id, **RUN_BY_TASK}]

    def _append(self, text: str) -> list[Json]:
        chunks = [*self._end_reasoning()]
        if not self._is_text_open:
            self._text_count += 1
            self._is_text_open = True
            chunks.append({"type": "text-start", "id": self._text_id})
        return [*chunks, {"type": "text-delta", "id": self._text_id, "delta": text}]

    def _restart(self, text: str) -> list[Json]:
        if self._resets_steps:
            # It removes the data parts, too.
            self._is_text_open = False
            self._open_sections.clear()
            agent = [chunk for step in self._answer.restore_agent_steps() for chunk in self._translate_agent_step(step)]
            return [{"type": "reset-step"}, *self._data.values(), *agent, *self._append(text)]
        ended = self._text_id
        return [*self._end_text(), {"type": "data-reset", "data": {"text_id": ended}}, *self._append(text)]

    def _end_parts(self) -> list[Json]:
        return [*self._end_reasoning(), *self._end_text()]

    def _end_reasoning(self) -> list[Json]:
        sections = [*self._open_sections]
        self._open_sections.clear()
        return [{"type": "reasoning-end", "id": section} for section in sections]

    def _end_text(self) -> list[Json]:
        was_open, self._is_text_open = self._is_text_open, False
        return [{"type": "text-end", "id": self._text_id}] if was_open else []

    @property
    def _text_id(self) -> str:
        return f"text-{self._text_count}"


def _build_task(task: TaskTransition | TaskInfo) -> Json:
    return _build_part("task", task, {"state": task.state, "try_number": task.try_number})


def _build_part(name: str, frame: TaskTransition | TaskInfo | Progress, data: Json) -> Json:
    """Return a data part of a task instance. One with the same type and id replaces it."""
    instance: Json = {"task_id": frame.task_id, "map_index": frame.map_index}
    if frame.iteration is not None:
        instance["iteration"] = frame.iteration
    return {"type": f"data-{name}", "id": name_instance(frame), "data": {**instance, **data}}


def _list_members(frame: Input | InputAnswered) -> Json:
    """Return the members of a frame as they are sent, but for its type."""
    members: Json = msgspec.json.decode(msgspec.json.encode(frame))
    del members["type"]
    return members


def _encode(chunks: list[Json]) -> bytes:
    return b"".join([b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks])
