"""The XCom with which a task pushes output (`docs/other-languages.md`). Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from stream_server.protocol.output_frames import (
    AnyOutputFrame,
    Chunk,
    Progress,
    Report,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)


class OutputItem(msgspec.Struct, frozen=True):
    """One item of output. It has one of these members, with `text` beside `progress`."""

    chunk: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    progress: float | msgspec.UnsetType | None = msgspec.UNSET
    text: str | None = None
    thinking: str | msgspec.UnsetType = msgspec.UNSET
    tool_call: ToolRequest | msgspec.UnsetType = msgspec.UNSET
    tool_result: ToolResponse | msgspec.UnsetType = msgspec.UNSET


class OutputBatch(msgspec.Struct, frozen=True):
    """The items of one push."""

    try_number: int
    index: Annotated[int, msgspec.Meta(ge=0)]
    """Position of the first item in the output of the try."""

    items: list[OutputItem | None]
    """An item of a kind that this version does not know has none of the members; an invalid one is `None`."""


WholeNumber = Annotated[float, msgspec.Meta(multiple_of=1)]
"""Some languages write whole numbers as `1.0`."""


class _UncheckedBatch(msgspec.Struct, frozen=True):
    try_number: WholeNumber
    index: Annotated[WholeNumber, msgspec.Meta(ge=0, le=2**53)]
    items: list[msgspec.Raw]


_KINDS: tuple[tuple[str, type[AnyOutputFrame]], ...] = (
    ("chunk", Chunk),
    ("thinking", Thinking),
    ("tool_call", ToolCall),
    ("tool_result", ToolResult),
)
"""Members of an item whose value is that of a frame."""

INVALID = (msgspec.MsgspecError, RecursionError)
"""Errors of the decoders. msgspec raises RecursionError for values that are nested too deeply."""

_batch_decoder = msgspec.json.Decoder(OutputBatch)
_unchecked_decoder = msgspec.json.Decoder(_UncheckedBatch)
_text_decoder = msgspec.json.Decoder(str)
_item_decoder = msgspec.json.Decoder(OutputItem)


def decode_batch(body: bytes | str) -> OutputBatch | None:
    """Return the value of an XCom as a batch; `None` if it is not one, nor the JSON text of one."""
    try:
        return _batch_decoder.decode(body)
    except INVALID:
        pass
    try:
        is_text = body[:1] in {'"', b'"'}
        batch = _unchecked_decoder.decode(_text_decoder.decode(body) if is_text else body)
    except INVALID:
        return None
    return OutputBatch(int(batch.try_number), int(batch.index), [_decode_item(item) for item in batch.items])


def find_value(item: OutputItem) -> tuple[type[AnyOutputFrame] | None, Any]:
    """Return the type and the value of the frame of an item; `None` if this version does not know its kind."""
    for name, kind in _KINDS:
        if (value := getattr(item, name)) is not msgspec.UNSET:
            return kind, value
    if item.progress is msgspec.UNSET:
        return None, None
    fraction = None if item.progress is None else min(max(item.progress, 0.0), 1.0)
    return Progress, Report(fraction=fraction, text=item.text)


def _decode_item(item: msgspec.Raw) -> OutputItem | None:
    """Return an item; `None` for an invalid one, so that the others of its batch are sent."""
    try:
        return _item_decoder.decode(item)
    except INVALID:
        return None
