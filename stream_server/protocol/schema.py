"""JSON Schema of what this server says and hears, made of the types themselves and of their docstrings. Pure.

A member is described by the docstring below it. One word has one meaning, so that a member without one is described by
the first class that says what its name means.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias, get_args

import msgspec

from stream_server.protocol import frames
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.examples import FRAMES, frame_examples
from stream_server.protocol.frames import Ack, AnyFrame, AuthExpiring, Close, Frame, Refusal

Json: TypeAlias = dict[str, Any]

FRAME_TYPES: tuple[type[Frame], ...] = get_args(AnyFrame)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

IGNORE_UNKNOWN = "Clients ignore members and types that they do not know: later versions may add some."

CURSOR_SCHEMA: Json = {
    "type": "string",
    "description": (
        "Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last"
        " frame of a batch has it. Over SSE it is the `id` of the event. Opaque."
    ),
}

STREAM_ID_SCHEMA: Json = {
    "type": "string",
    "description": "On a connection of many streams, what the client called the stream.",
}


def build_frames_document() -> Json:
    """Return the JSON Schema of all frames, as a document of its own."""
    return {
        "$schema": DIALECT,
        "$id": "urn:stream-server:frames",
        **_frame_union("#/$defs/{name}"),
        "examples": [example for examples in frame_examples(FRAMES).values() for example in examples],
        "$defs": build_frame_schemas("#/$defs/{name}"),
    }


def build_frame_schemas(template: str) -> dict[str, Json]:
    """Return the schemas of all frames and of what is in them, by name.

    Args:
        template: Of a reference to one of them, with `{name}` in it.
    """
    found = build_schemas(FRAME_TYPES, template)
    for kind in FRAME_TYPES:
        members = found[kind.__name__]["properties"]
        if kind not in {Ack, AuthExpiring, Refusal}:
            members["id"] = STREAM_ID_SCHEMA
            if kind is not Close:
                members["cursor"] = CURSOR_SCHEMA
    code = found[Close.__name__]["properties"]["code"]
    code["description"] += f"\n\n{_describe_codes(CloseCode)}"
    return {"Frame": _frame_union(template), **found} if not template.startswith("#/$defs") else found


def build_schemas(kinds: Iterable[type], template: str, words: Mapping[str, str] | None = None) -> dict[str, Json]:
    """Return the schemas of types and of those in them, by name.

    Args:
        kinds: The types.
        template: Of a reference to one of the schemas, with `{name}` in it.
        words: What members mean that no docstring describes.
    """
    kinds = tuple(kinds)
    _, found = msgspec.json.schema_components(kinds, ref_template=template)
    modules = dict.fromkeys(kind.__module__ for kind in (*kinds, *FRAME_TYPES))
    classes = {name: members for module in modules for name, members in _classes(module).items()}
    glossary = {word: text for members in reversed(classes.values()) for word, text in members.items()}
    for name, schema in found.items():
        meanings = {**(words or {}), **glossary, **classes.get(name, {})}
        for member, shape in schema.get("properties", {}).items():
            if member in meanings and "description" not in shape:
                _describe(shape, meanings[member])
    return dict(found)


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Return how a kind of frames, or of what clients say, is marked on the wire."""
    return str(kind.__struct_config__.tag)


def description_of(kind: type) -> str:
    """Return the docstring of a class, without the breaks of its lines."""
    return _join_lines(inspect.getdoc(kind) or "")


def reference_to(kind: type | str) -> Json:
    """Return a reference to a schema among the components of a document."""
    return {"$ref": f"#/components/schemas/{kind if isinstance(kind, str) else kind.__name__}"}


def _frame_union(template: str) -> Json:
    places = {tag_of(kind): template.format(name=kind.__name__) for kind in FRAME_TYPES}
    return {
        "title": "Frame",
        "description": f"{_join_lines((frames.__doc__ or '').strip())} {IGNORE_UNKNOWN}",
        "type": "object",
        "oneOf": [{"$ref": place} for place in places.values()],
        "discriminator": {"propertyName": "type", "mapping": places},
    }


def _describe(shape: Json, text: str) -> None:
    # Beside a reference, older readers see nothing else; the dialect in use lets it stand there.
    shape["description"] = text


def _describe_codes(codes: type[IntEnum]) -> str:
    texts = _classes(codes.__module__)[codes.__name__]
    return "\n".join(f"- `{int(code)}` {code.name}: {texts[code.name]}" for code in codes)


@cache
def _classes(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return the docstrings of the attributes of each class of a module, with those that it inherits there.

    Python drops them; they are read from the source.
    """
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [found.get(base.id, {}) for base in node.bases if isinstance(base, ast.Name)]
            found[node.name] = {name: text for base in bases for name, text in base.items()} | _documented(node)
    return found


def _documented(node: ast.ClassDef) -> dict[str, str]:
    found: dict[str, str] = {}
    for one, other in pairwise(node.body):
        if isinstance(one, ast.AnnAssign):
            target: ast.expr = one.target
        elif isinstance(one, ast.Assign):
            target = one.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and isinstance(other, ast.Expr) and isinstance(other.value, ast.Constant):
            found[target.id] = _join_lines(inspect.cleandoc(str(other.value.value)))
    return found


def _join_lines(text: str) -> str:
    """Return a text with a line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
