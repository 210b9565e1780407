"""What AI agents in tasks do beside the text of the answer: thinking and tool calls. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import msgspec

from stream_server.protocol.output_frames import Chunk, OutputFrame, Thinking, ToolCall, ToolResult


class Thought(NamedTuple):
    """A part of the thinking of a model."""

    section: str
    """Texts of one section are appended."""

    text: str


class ToolStarted(NamedTuple):
    """A tool is called. The task runs it."""

    call_id: str
    """Unique in the run."""

    name: str
    arguments: msgspec.Raw


class ToolEnded(NamedTuple):
    """A tool call has ended."""

    call_id: str
    name: str | None
    """`None` if the call is not known."""

    result: msgspec.Raw | None
    error: str | None
    """Why there is no result; `None` if there is one."""


AgentStep: TypeAlias = Thought | ToolStarted | ToolEnded
EMPTY = msgspec.Raw(b"null")


MAX_LINE_CHARACTERS = 200


def describe_tool(step: ToolStarted | ToolEnded) -> str | None:
    """Return a tool call or its error as a line for people; `None` for its result, which may be long."""
    if isinstance(step, ToolStarted):
        text = f"{step.name} {bytes(step.arguments).decode()}"
    elif step.error is not None:
        text = f"{step.name or 'A tool'} failed: {step.error}"
    else:
        return None
    return text if len(text) <= MAX_LINE_CHARACTERS else text[: MAX_LINE_CHARACTERS - 1] + "…"


def join_thinking(steps: Iterable[AgentStep]) -> str:
    """Return the thinking in some steps, with an empty line between sections."""
    sections: dict[str, list[str]] = {}
    for step in steps:
        if isinstance(step, Thought):
            sections.setdefault(step.section, []).append(step.text)
    return "\n\n".join(["".join(texts) for texts in sections.values()])


class AgentSteps:
    """The steps of all tasks of a run, each once: after a retraction, the frames that hold come again.

    Args:
        keeps_standing: Whether `standing` is needed. Models think in thousands of small parts.
    """

    def __init__(self, *, keeps_standing: bool = False) -> None:
        self._next_index: dict[str, int] = {}
        """By attempt, the index after the frames that the client has learned from."""

        self._keeps_standing = keeps_standing
        self._standing: list[AgentStep] = []
        self._standing_index: dict[str, int] = {}
        """By attempt, the index after the frames of the steps that hold."""

        self._sections: dict[str, str] = {}
        """By attempt, the section of thinking that has not ended."""

        self._names: dict[str, str] = {}

    @property
    def standing(self) -> list[AgentStep]:
        """The steps that hold, oldest first."""
        return [*self._standing]

    def retract(self) -> None:
        """Begin again: the steps that hold come again."""
        self._standing.clear()
        self._standing_index.clear()
        self._sections.clear()

    def restore(self) -> list[AgentStep]:
        """Return the steps that hold, for a client that has no others. Those that come again follow."""
        self._next_index = dict(self._standing_index)
        return self.standing

    def add(self, frame: OutputFrame, instance: str) -> list[AgentStep]:
        """Return what a client learns from a frame with output of a task instance, which has a unique name."""
        attempt = f"{instance}/{frame.try_number}"
        step = self._build_step(frame, attempt)
        if step is None:
            # Output that is not of an agent ends the section, too. Progress does not.
            if isinstance(frame, Chunk):
                self._sections.pop(attempt, None)
            return []
        if self._keeps_standing:
            self._standing.append(step)
        self._standing_index[attempt] = frame.index + 1
        if frame.index < self._next_index.get(attempt, 0):
            return []
        self._next_index[attempt] = frame.index + 1
        return [step]

    def _build_step(self, frame: OutputFrame, attempt: str) -> AgentStep | None:
        match frame:
            case Thinking(value=str() as text):
                # The place in the output is the same for clients that connect after old output was dropped.
                section = self._sections.setdefault(attempt, f"{attempt}/thinking-{frame.index}")
                return Thought(section, text)
            case ToolCall() if frame.value is not msgspec.UNSET:
                self._sections.pop(attempt, None)
                call_id = f"{attempt}/{frame.value.id}"
                self._names[call_id] = frame.value.name
                return ToolStarted(call_id, frame.value.name, frame.value.arguments)
            case ToolResult() if frame.value is not msgspec.UNSET:
                self._sections.pop(attempt, None)
                call_id = f"{attempt}/{frame.value.id}"
                result = EMPTY if frame.value.result is msgspec.UNSET else frame.value.result
                failed = frame.value.error is not None
                return ToolEnded(call_id, self._names.get(call_id), None if failed else result, frame.value.error)
            case _:
                return None
