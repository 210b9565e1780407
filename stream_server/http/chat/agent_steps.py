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
        self._sections: dict[str, int] = {}
        self._is_thinking: set[str] = set()
        self._names: dict[str, str] = {}

    @property
    def standing(self) -> list[AgentStep]:
        """The steps that hold, oldest first."""
        return [*self._standing]

    def retract(self) -> None:
        """Begin again: the steps that hold come again."""
        self._standing.clear()
        # The frames that come again get the same sections.
        self._sections.clear()
        self._is_thinking.clear()

    def add(self, frame: OutputFrame, instance: str) -> list[AgentStep]:
        """Return what a client learns from a frame with output of a task instance, which has a unique name."""
        attempt = f"{instance}/{frame.try_number}"
        step = self._build_step(frame, attempt)
        if step is None:
            # Output that is not of an agent ends the section, too. Progress does not.
            if isinstance(frame, Chunk):
                self._is_thinking.discard(attempt)
            return []
        if self._keeps_standing:
            self._standing.append(step)
        if frame.index < self._next_index.get(attempt, 0):
            return []
        self._next_index[attempt] = frame.index + 1
        return [step]

    def _build_step(self, frame: OutputFrame, attempt: str) -> AgentStep | None:
        match frame:
            case Thinking(value=str() as text):
                if attempt not in self._is_thinking:
                    self._is_thinking.add(attempt)
                    self._sections[attempt] = self._sections.get(attempt, 0) + 1
                return Thought(f"{attempt}/thinking-{self._sections[attempt]}", text)
            case ToolCall() if frame.value is not msgspec.UNSET:
                self._is_thinking.discard(attempt)
                call_id = f"{attempt}/{frame.value.id}"
                self._names[call_id] = frame.value.name
                return ToolStarted(call_id, frame.value.name, frame.value.arguments)
            case ToolResult() if frame.value is not msgspec.UNSET:
                self._is_thinking.discard(attempt)
                call_id = f"{attempt}/{frame.value.id}"
                result = EMPTY if frame.value.result is msgspec.UNSET else frame.value.result
                failed = frame.value.error is not None
                return ToolEnded(call_id, self._names.get(call_id), None if failed else result, frame.value.error)
            case _:
                return None
