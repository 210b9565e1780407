"""`StreamOutput`: a capability of pydantic-ai that streams what an agent does in a running task.

It is for `AgentOperator` and `@task.agent` of `apache-airflow-providers-common-ai`, and for agents of other tasks.
`stream_server.authoring` does not import it, because pydantic-ai is not installed wherever DAG files are read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version
from stream_server.authoring.agent_output import emit_text, emit_thinking, emit_tool_call, emit_tool_result
from stream_server.authoring.output import flush, run_in_task

try:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import (
        AgentStreamEvent,
        FunctionToolCallEvent,
        FunctionToolResultEvent,
        NativeToolCallPart,
        NativeToolReturnPart,
        PartDeltaEvent,
        PartEndEvent,
        PartStartEvent,
        TextPart,
        TextPartDelta,
        ThinkingPart,
        ThinkingPartDelta,
    )
    from pydantic_core import from_json, to_json
except ImportError as error:
    raise ImportError(
        "stream_server.authoring.pydantic_ai needs pydantic-ai 2.36 or later, which"
        " apache-airflow-providers-common-ai installs: pip install apache-airflow-providers-common-ai"
    ) from error

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.messages import RetryPromptPart, ToolCallPart, ToolReturnPart

log = logging.getLogger(__name__)

FIRST_AIRFLOW = (3, 2)
"""Earlier versions do not lock the connection to the supervisor, which tools may use in other threads."""

BREAK = "\n\n"
"""Separates texts of different parts, which clients append."""


@dataclass
class StreamOutput(AbstractCapability[Any]):  # type: ignore[misc] # pydantic-ai is not type-checked here
    """Streams the text, thinking and tool calls of an agent to the clients that watch the run.

    Pass it as `AgentOperator(capabilities=[StreamOutput()])`. Outside of a running task it does nothing, and it never
    fails the task.
    """

    thinking: bool = True
    """Whether to stream the thinking of the model."""

    tools: bool = True
    """Whether to stream tool calls and their results."""

    @classmethod
    def get_serialization_name(cls) -> str | None:
        return None

    async def for_run(self, ctx: RunContext[Any]) -> AbstractCapability[Any]:
        if _parse_version(airflow_version) < FIRST_AIRFLOW:
            log.warning("StreamOutput streams nothing: it needs Airflow 3.2 or later, this is %s", airflow_version)
            return self
        return _RunOutput(thinking=self.thinking, tools=self.tools)


@dataclass
class _RunOutput(StreamOutput):
    """The same for one run of an agent."""

    _last_kind: str | None = field(default=None, init=False, repr=False, compare=False)
    """Kind of the part that was emitted last: `text`, `thinking` or `tool`."""

    _has_text: bool = field(default=False, init=False, repr=False, compare=False)
    _break: str = field(default="", init=False, repr=False, compare=False)
    """What precedes the next piece of the current part."""

    async def wrap_run_event_stream(
        self, ctx: RunContext[Any], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterator[AgentStreamEvent]:
        # Not `on_event`, which pydantic-ai 2.36 does not have.
        async for event in super().wrap_run_event_stream(ctx, stream=stream):
            self._emit_event(event)
            yield event
        # The run may end here, to wait for approval of a tool call: then nothing else pushes what is buffered.
        flush()

    def _emit_event(self, event: AgentStreamEvent) -> None:
        run_in_task(lambda _buffer: self._emit_items_of(event))

    def _emit_items_of(self, event: AgentStreamEvent) -> None:
        match event:
            case PartStartEvent(part=TextPart() as part):
                is_next = self._has_text and event.previous_part_kind != "text"
                self._break = BREAK if is_next else ""
                self._emit_text(part.content)
            case PartStartEvent(part=ThinkingPart() as part):
                self._break = BREAK if self._last_kind == "thinking" else ""
                self._emit_thinking(part.content)
            case PartDeltaEvent(delta=TextPartDelta() as delta):
                self._emit_text(delta.content_delta)
            case PartDeltaEvent(delta=ThinkingPartDelta() as delta):
                self._emit_thinking(delta.content_delta)
            case PartEndEvent(part=NativeToolCallPart() as part) | FunctionToolCallEvent(part=part):
                self._emit_call(part)
            case PartStartEvent(part=NativeToolReturnPart() as part) | FunctionToolResultEvent(part=part):
                self._emit_result(part)

    def _emit_text(self, text: str) -> None:
        if text:
            emit_text(self._break + text)
            self._break, self._last_kind, self._has_text = "", "text", True

    def _emit_thinking(self, text: str | None) -> None:
        if text and self.thinking:
            emit_thinking(self._break + text)
            self._break, self._last_kind = "", "thinking"

    def _emit_call(self, part: ToolCallPart | NativeToolCallPart) -> None:
        if self.tools:
            emit_tool_call(part.tool_call_id, part.tool_name, _parse_arguments(part.args))
        self._last_kind = "tool"

    def _emit_result(self, part: ToolReturnPart | NativeToolReturnPart | RetryPromptPart) -> None:
        if not self.tools:
            return
        # A part that asks the model to call the tool again has no outcome.
        if getattr(part, "outcome", "failed") == "success":
            emit_tool_result(part.tool_call_id, _convert_to_json(part.content))
        else:
            emit_tool_result(part.tool_call_id, error=_describe_error(part))


def _parse_arguments(arguments: str | dict[str, Any] | None) -> object:
    """Return arguments as a JSON object; as text if the model wrote something else."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _convert_to_json(content: object) -> object:
    """Return what a tool returned, such as a model of pydantic or an image, as a JSON value."""
    try:
        return from_json(to_json(content, bytes_mode="base64", inf_nan_mode="strings", serialize_unknown=True))
    except ValueError:
        return str(content)


def _describe_error(part: ToolReturnPart | NativeToolReturnPart | RetryPromptPart) -> str:
    content = part.content
    return content if isinstance(content, str) else json.dumps(_convert_to_json(content))


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])
