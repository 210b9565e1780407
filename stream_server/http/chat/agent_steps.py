"""What AI agents in tasks do beside the text of the answer: thinking and tool calls. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
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

MAX_TOOL_BYTES = 1_048_576
"""Arguments and results of tools that are kept for each client, as much as the hub keeps of the output of a run."""


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


class StandingSteps:
    """The steps that hold: thinking by section, and the tool calls of the last `MAX_TOOL_BYTES`.

    Args:
        has_tools: Whether tool calls are kept.
    """

    def __init__(self, *, has_tools: bool) -> None:
        self._has_tools = has_tools
        self._entries: dict[tuple[str, str], StringIO | ToolStarted | ToolEnded] = {}
        self._call_bytes: dict[str, int] = {}
        self._tool_bytes = 0

    def add(self, step: AgentStep) -> None:
        if isinstance(step, Thought):
            # Models think in thousands of small parts.
            text = self._entries.setdefault(("thinking", step.section), StringIO())
            assert isinstance(text, StringIO), "the key has the kind"
            text.write(step.text)
        elif self._has_tools and (isinstance(step, ToolStarted) or step.call_id in self._call_bytes):
            self._entries[type(step).__name__, step.call_id] = step
            self._count_bytes(step)

    def _count_bytes(self, step: ToolStarted | ToolEnded) -> None:
        content = step.arguments if isinstance(step, ToolStarted) else step.result or b""
        added = len(bytes(content))
        self._tool_bytes += added
        self._call_bytes[step.call_id] = self._call_bytes.get(step.call_id, 0) + added
        while self._tool_bytes > MAX_TOOL_BYTES and len(self._call_bytes) > 1:
            oldest = next(iter(self._call_bytes))
            self._tool_bytes -= self._call_bytes.pop(oldest)
            for kind in (ToolStarted, ToolEnded):
                self._entries.pop((kind.__name__, oldest), None)

    def clear(self) -> None:
        self._entries.clear()
        self._call_bytes.clear()
        self._tool_bytes = 0

    def list_steps(self) -> list[AgentStep]:
        """Return the steps, oldest first; those of one section as one."""
        return [
            Thought(name, entry.getvalue()) if isinstance(entry, StringIO) else entry
            for (_, name), entry in self._entries.items()
        ]


class AgentSteps:
    """The steps of all tasks of a run, each once: after a retraction, the frames that hold come again.

    Args:
        keeps_thinking: Whether the thinking in `standing` is needed.
        keeps_tools: Whether all of `standing` is needed.
    """

    def __init__(self, *, keeps_thinking: bool = False, keeps_tools: bool = False) -> None:
        self._next_index: dict[str, int] = {}
        """By attempt, the index after the frames that the client has learned from."""

        self._standing = StandingSteps(has_tools=keeps_tools) if keeps_thinking or keeps_tools else None
        self._standing_index: dict[str, int] = {}
        """By attempt, the index after the frames of the steps that hold."""

        self._sections: dict[str, str] = {}
        """By attempt, the section of thinking that has not ended."""

        self._names: dict[str, str] = {}

    @property
    def standing(self) -> list[AgentStep]:
        """The steps that hold, oldest first."""
        return [] if self._standing is None else self._standing.list_steps()

    def retract(self) -> None:
        """Begin again: the steps that hold come again."""
        if self._standing is not None:
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
        if self._standing is not None:
            self._standing.add(step)
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
