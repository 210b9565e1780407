"""`emit_thinking`, `emit_tool_call` and `emit_tool_result`: send what an AI agent does in a running task."""

from __future__ import annotations

import json

from stream_server.authoring.output import run_in_task
from stream_server.authoring.output_buffer import OutputBuffer

MAX_VALUE_BYTES = 60 * 1024
"""JSON text of arguments, or of a result, that is sent whole. An item has at most `output_buffer.MAX_ITEM_BYTES`."""

MAX_TRUNCATED_CHARACTERS = 16 * 1024
"""Characters of larger arguments and results that are sent."""

MAX_TEXT_CHARACTERS = 4096
"""Longest text of one item, with room for characters that JSON escapes. Longer texts are sent in several."""


def emit_text(text: str) -> None:
    """Send a text of any length in `chunk` frames."""
    run_in_task(lambda buffer: _add_text(buffer, "chunk", text))


def emit_thinking(text: str) -> None:
    """Send a part of the thinking of an AI model. Clients that watch the run receive a `thinking` frame.

    Outside of a running task it does nothing, and it never fails the task. Clients append texts that follow each other.
    """
    run_in_task(lambda buffer: _add_text(buffer, "thinking", text))


def emit_tool_call(call_id: str, name: str, arguments: object = None) -> None:
    """Send that an AI model calls a tool. Clients that watch the run receive a `tool_call` frame.

    Args:
        call_id: Identifies the call. It must be unique in the try of the task.
        name: Name of the tool.
        arguments: A JSON object, or the text that the model wrote. Larger ones are truncated.
    """

    def add(buffer: OutputBuffer) -> None:
        value, is_truncated = _shorten({} if arguments is None else arguments)
        call = {"id": call_id, "name": name, "arguments": value}
        buffer.add({"tool_call": {**call, "truncated": True} if is_truncated else call})

    run_in_task(add)


def emit_tool_result(call_id: str, result: object = None, *, error: str | None = None) -> None:
    """Send the outcome of a tool call. Clients that watch the run receive a `tool_result` frame.

    Args:
        call_id: That of `emit_tool_call`.
        result: What the tool returned. A larger one is truncated, and what is not a JSON value is sent as text.
        error: Why there is no result.
    """

    def add(buffer: OutputBuffer) -> None:
        if error is not None:
            buffer.add({"tool_result": {"id": call_id, "error": str(error)[:MAX_TEXT_CHARACTERS]}})
            return
        value, is_truncated = _shorten(result)
        outcome = {"id": call_id, "result": value}
        buffer.add({"tool_result": {**outcome, "truncated": True} if is_truncated else outcome})

    run_in_task(add)


def _add_text(buffer: OutputBuffer, key: str, text: str) -> None:
    for start in range(0, len(text), MAX_TEXT_CHARACTERS):
        buffer.add({key: text[start : start + MAX_TEXT_CHARACTERS]})


def _shorten(value: object) -> tuple[object, bool]:
    """Return a value as JSON value of limited size, and whether it is the start of the whole text."""
    try:
        text = json.dumps(value, allow_nan=False, default=str)
    except (TypeError, ValueError, RecursionError):
        value = str(value)
        text = json.dumps(value)
    if len(text) <= MAX_VALUE_BYTES:
        return json.loads(text), False
    start = (value if isinstance(value, str) else text)[:MAX_TRUNCATED_CHARACTERS]
    while len(json.dumps(start)) > MAX_VALUE_BYTES:
        start = start[: len(start) // 2]
    return start, True
