"""JSON Schema of the wire types, made of the types, their docstrings and their descriptions (`msgspec.Meta`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, get_args

import msgspec

from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.examples import FRAMES, frame_examples
from stream_server.protocol.frame_members import Frame
from stream_server.protocol.frames import Ack, AnyFrame, AuthExpiring, Close, Refusal

Json: TypeAlias = dict[str, Any]

INVALID_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of decoders for a text from outside. For bytes within a string that are no UTF-8, it is the second one."""

FRAME_TYPES: tuple[type[Frame], ...] = get_args(AnyFrame)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

FRAME_DESCRIPTION = (
    "A frame: one JSON object with its `type` as the first member, the same on every transport. Clients ignore members"
    " and types that they do not know, because later versions may add some."
)

CURSOR_SCHEMA: Json = {
    "type": "string",
    "description": (
        "Position in the stream after this frame. A client that reconnects sends it back to resume from there. On"
        " WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque."
    ),
}

STREAM_ID_SCHEMA: Json = {
    "type": "string",
    "description": "On a connection with several streams, the `id` that the client gave the stream.",
}


def build_frames_document() -> Json:
    """Return the JSON Schema of all frames as a separate document."""
    return {
        "$schema": DIALECT,
        "$id": "urn:stream-server:frames",
        **_frame_union("#/$defs/{name}"),
        "examples": [example for examples in frame_examples(FRAMES).values() for example in examples],
        "$defs": build_frame_schemas("#/$defs/{name}"),
    }


def build_frame_schemas(template: str) -> dict[str, Json]:
    """Return the schemas of all frames and of the types in them, by name.

    Args:
        template: Reference to one of them, with `{name}` as its placeholder.
    """
    found = build_schemas(FRAME_TYPES, template)
    for kind in FRAME_TYPES:
        members = found[kind.__name__]["properties"]
        if kind not in {Ack, AuthExpiring, Refusal}:
            members["id"] = STREAM_ID_SCHEMA
            if kind is not Close:
                members["cursor"] = CURSOR_SCHEMA
    code = found[Close.__name__]["properties"]["code"]
    code["description"] += "\n\n" + "\n".join(f"- `{int(code)}` {code.name}: {code.description}" for code in CloseCode)
    return {"Frame": _frame_union(template), **found} if not template.startswith("#/$defs") else found


def build_schemas(
    kinds: Iterable[type], template: str, descriptions: Mapping[str, str] | None = None
) -> dict[str, Json]:
    """Return the schemas of some types and of the types in them, by name.

    Args:
        kinds: The types.
        template: Reference to one of the schemas, with `{name}` as its placeholder.
        descriptions: Descriptions by member, for members whose type has none.
    """
    _, found = msgspec.json.schema_components(tuple(kinds), ref_template=template)
    for schema in found.values():
        for name, member in schema.get("properties", {}).items():
            if descriptions is not None and name in descriptions:
                member.setdefault("description", descriptions[name])
    return dict(found)


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Return the value of the member that identifies a type on the wire (`type` or `op`)."""
    return str(kind.__struct_config__.tag)


def description_of(kind: type) -> str:
    """Return the docstring of a class, one line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (inspect.getdoc(kind) or "").split("\n\n"))


def reference_to(kind: type | str) -> Json:
    """Return a reference to a schema among the components of a document."""
    return {"$ref": f"#/components/schemas/{kind if isinstance(kind, str) else kind.__name__}"}


def _frame_union(template: str) -> Json:
    references = {tag_of(kind): template.format(name=kind.__name__) for kind in FRAME_TYPES}
    return {
        "title": "Frame",
        "description": FRAME_DESCRIPTION,
        "type": "object",
        "oneOf": [{"$ref": reference} for reference in references.values()],
        "discriminator": {"propertyName": "type", "mapping": references},
    }
