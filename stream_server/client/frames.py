"""Frames as the client yields them: those of `protocol.frames`, with JSON values decoded.

A frame of a type that this version does not know is an `UnknownFrame`. A match statement selects by class:

    match frame:
        case Chunk(value=str(text)): ...
        case Failure(reason=reason, task_id=task_id): ...
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import msgspec

from stream_server.client.errors import UnexpectedResponse
from stream_server.protocol import frames, input_frames, output_frames
from stream_server.protocol.frames import (
    Ack,
    AuthExpiring,
    Close,
    End,
    Failure,
    Ping,
    Refusal,
    Reset,
    Resumed,
    RunTransition,
    Snapshot,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.output_frames import OutputFrame, Report

__all__ = [
    "Chunk",
    "End",
    "Failure",
    "Input",
    "InputAnswered",
    "InputParam",
    "Progress",
    "Reset",
    "Result",
    "Resumed",
    "RunTransition",
    "Snapshot",
    "StreamFrame",
    "TaskTransition",
    "Thinking",
    "ToolCall",
    "ToolRequest",
    "ToolResponse",
    "ToolResult",
    "UnknownFrame",
    "Waiting",
    "decode_frame",
    "parse_leniently",
]


class Chunk(OutputFrame, frozen=True, kw_only=True, tag="chunk"):
    """A running task emitted a chunk of output. Append text to the text of earlier chunks."""

    value: Any = None
    """Any JSON value; `None` also if `withheld`."""

    withheld: bool = False
    """Whether the value is left out because the caller may not read it."""


class Progress(OutputFrame, frozen=True, kw_only=True, tag="progress"):
    """A running task reported its progress. It replaces earlier progress of the task instance."""

    value: Report | None = None
    """`None` if `withheld`."""

    withheld: bool = False
    """Whether the value is left out because the caller may not read it."""


class Thinking(OutputFrame, frozen=True, kw_only=True, tag="thinking"):
    """The AI model of a running task emitted a part of its thinking, which is not part of the result."""

    value: str | None = None
    """`None` if `withheld`."""

    withheld: bool = False
    """Whether the value is left out because the caller may not read it."""


class ToolRequest(output_frames.ToolRequest, frozen=True, kw_only=True):
    """A call of a tool. The task runs the tool, not the client."""

    arguments: Any
    """The arguments: a JSON object, or the text that the model wrote if that is not one."""


class ToolCall(OutputFrame, frozen=True, kw_only=True, tag="tool_call"):
    """The AI model of a running task calls a tool. A `ToolResult` with the same `value.id` follows."""

    value: ToolRequest | None = None
    """`None` if `withheld`."""

    withheld: bool = False
    """Whether the value is left out because the caller may not read it."""


class ToolResponse(output_frames.ToolResponse, frozen=True, kw_only=True):
    """What a tool returned, or why it returned nothing."""

    result: Any = None
    """Any JSON value; `None` also if there is an `error`."""


class ToolResult(OutputFrame, frozen=True, kw_only=True, tag="tool_result"):
    """A tool call of a running task has ended."""

    value: ToolResponse | None = None
    """`None` if `withheld`."""

    withheld: bool = False
    """Whether the value is left out because the caller may not read it."""


class Result(frames.Result, frozen=True, kw_only=True, tag="result"):
    """The return values of the result tasks. The run may still be running."""

    results: dict[str, Any]
    """Value by task; of a mapped task a list by `map_index`; of a task in a loop the value in its last iteration."""


class InputParam(input_frames.InputParam, frozen=True, kw_only=True):
    """A field of the form of a request for human input."""

    value: Any
    """Value that is set in advance."""

    schema: Any
    """JSON Schema of the value."""


class Input(input_frames.Input, frozen=True, kw_only=True, tag="input"):
    """A task asks for human input. It replaces an earlier request of the task instance."""

    params: dict[str, InputParam] = msgspec.field(default_factory=dict)  # type: ignore[assignment]
    """Fields of the form, by name."""


class InputAnswered(input_frames.InputAnswered, frozen=True, kw_only=True, tag="input_answered"):
    """A request for human input was answered, or has expired and has its defaults."""

    params_input: dict[str, Any] = msgspec.field(default_factory=dict)
    """Value by field of the form."""


class UnknownFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame of a type that this version of the client does not know."""

    type: str
    members: dict[str, Any]
    """All members of the frame, as the server sent them."""

    @property
    def seq(self) -> Any:
        """Row of the journal; `None` if the frame has none."""
        return self.members.get("seq")


KnownFrame: TypeAlias = (
    Snapshot
    | Waiting
    | TaskTransition
    | RunTransition
    | Chunk
    | Progress
    | Thinking
    | ToolCall
    | ToolResult
    | Input
    | InputAnswered
    | Result
    | Failure
    | Reset
    | Resumed
    | End
)

StreamFrame: TypeAlias = KnownFrame | UnknownFrame
"""What a stream yields."""

ConnectionFrame: TypeAlias = Close | Ping | AuthExpiring | Ack | Refusal
"""Frames about the connection. The client handles them, and yields none of them."""

_decoder: msgspec.json.Decoder[KnownFrame | ConnectionFrame] = msgspec.json.Decoder(KnownFrame | ConnectionFrame)


def decode_frame(line: bytes | bytearray) -> StreamFrame | ConnectionFrame | None:
    """Return the frame of a line; `None` if the line is not a frame, for example because a proxy inserted it.

    Raises:
        UnexpectedResponse: The line is a frame that cannot be decoded.
    """
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        members = parse_leniently(line)
    if not isinstance(members, dict) or not isinstance(kind := members.get("type"), str):
        return None
    try:
        frame: KnownFrame | ConnectionFrame = msgspec.convert(members, KnownFrame | ConnectionFrame)
    except msgspec.ValidationError:
        # A known type with members of other kinds is a later version of it: the client cannot rely on what it has.
        return UnknownFrame(type=kind, members=members)
    return frame


def parse_leniently(text: str | bytes | bytearray) -> Any:
    """Return the JSON value of a line, also with what databases contain and msgspec refuses; `None` if it is no JSON.

    Numbers beyond the range of floats become infinite, invalid UTF-8 is replaced, and lone surrogates are kept.

    Raises:
        UnexpectedResponse: The line is a frame that cannot be decoded.
    """
    text = (text if isinstance(text, str) else text.decode(errors="replace")).strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Without it the stream would continue, and its cursor would skip the frame.
        if text.startswith('{"type":"') and text.endswith("}"):
            raise UnexpectedResponse(f"a frame cannot be decoded ({error}): {text[:200]}") from error
        return None
