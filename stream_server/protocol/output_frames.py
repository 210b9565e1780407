"""Frames with output of running tasks: values, progress, and what an AI agent does. `frames` has the others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from stream_server.protocol.frame_members import Iteration, MapIndex, RowFrame, TaskId, TryNumber

Withheld: TypeAlias = Annotated[
    bool, Meta(description="Whether the value is left out because the caller may not read it.")
]
CallId: TypeAlias = Annotated[str, Meta(description="Id of the call, unique in its try.")]


class OutputFrame(RowFrame, frozen=True, kw_only=True):
    """A frame about the output of a running task. One journal row may hold several."""

    task_id: TaskId
    map_index: MapIndex
    try_number: TryNumber
    index: Annotated[
        int,
        Meta(
            description=(
                "Position in the output of this try, frames of all types together, from 0. Missing positions were not"
                " kept."
            )
        ),
    ]
    iteration: Iteration = None


class Chunk(OutputFrame, frozen=True, kw_only=True, tag="chunk", omit_defaults=True):
    """A running task emitted a chunk of output, usually a part of its result."""

    value: Annotated[
        msgspec.Raw | msgspec.UnsetType,
        Meta(description="Any JSON value, as the database holds it. Append text to the text of earlier chunks."),
    ] = msgspec.UNSET
    withheld: Withheld = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How far a task has come."""

    fraction: Annotated[float | None, Meta(description="From 0 to 1; `null` if unknown.")] = None
    text: Annotated[str | None, Meta(description="Description of the progress.")] = None


class Progress(OutputFrame, frozen=True, kw_only=True, tag="progress", omit_defaults=True):
    """A running task reported its progress."""

    value: Annotated[
        Report | msgspec.UnsetType, Meta(description="The progress. It replaces earlier progress of the task instance.")
    ] = msgspec.UNSET
    withheld: Withheld = False


class Thinking(OutputFrame, frozen=True, kw_only=True, tag="thinking", omit_defaults=True):
    """The AI model of a running task emitted a part of its thinking, which is not part of the result."""

    value: Annotated[
        str | msgspec.UnsetType,
        Meta(
            description=(
                "Append the text to that of earlier frames of this type, unless a `chunk`, `tool_call` or `tool_result`"
                " of the task instance came in between."
            )
        ),
    ] = msgspec.UNSET
    withheld: Withheld = False


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a tool. The task runs the tool, not the client."""

    id: CallId
    name: Annotated[str, Meta(description="Name of the tool.")]
    arguments: Annotated[
        msgspec.Raw,
        Meta(description="The arguments: a JSON object, or the text that the model wrote if that is not one."),
    ]
    truncated: Annotated[
        bool,
        Meta(description="Whether `arguments` is the start of their text, because they were too large."),
    ] = False


class ToolCall(OutputFrame, frozen=True, kw_only=True, tag="tool_call", omit_defaults=True):
    """The AI model of a running task calls a tool. A `tool_result` with the same `value.id` follows."""

    value: Annotated[ToolRequest | msgspec.UnsetType, Meta(description="The call.")] = msgspec.UNSET
    withheld: Withheld = False


class ToolResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a tool returned, or why it returned nothing."""

    id: CallId
    result: Annotated[
        msgspec.Raw | msgspec.UnsetType, Meta(description="Any JSON value; absent if there is an `error`.")
    ] = msgspec.UNSET
    error: Annotated[
        str | None, Meta(description="Why there is no result, such as an exception of the tool or a denial.")
    ] = None
    truncated: Annotated[
        bool, Meta(description="Whether `result` is the start of its text, because it was too large.")
    ] = False


class ToolResult(OutputFrame, frozen=True, kw_only=True, tag="tool_result", omit_defaults=True):
    """A tool call of a running task has ended."""

    value: Annotated[ToolResponse | msgspec.UnsetType, Meta(description="The outcome of the call.")] = msgspec.UNSET
    withheld: Withheld = False


AnyOutputFrame: TypeAlias = Chunk | Progress | Thinking | ToolCall | ToolResult
