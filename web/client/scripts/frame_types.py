"""Generate the TypeScript types of the frames from the server's JSON Schema. `make frame-types` runs this.

It supports the parts of JSON Schema that the frames use, and fails for any other.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any, get_args

from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import AnyOutputFrame
from stream_server.protocol.schema import build_frames_document

SOURCE = Path(__file__).resolve().parents[1] / "src" / "protocol"

HEADER = (
    "// Made of the server's JSON Schema by `make frame-types`;"
    " to change it, change stream_server/protocol/frames.py.\n"
)

LINE_WIDTH = 118

SCALARS = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}

OPEN_ENUMS = frozenset({"reason", "code"})
"""Members that may have further values in later versions: clients must accept them."""

INPUT_FRAMES = (Input.__name__, InputAnswered.__name__)

OUTPUT_FRAMES = tuple(kind.__name__ for kind in get_args(AnyOutputFrame))

Schema = dict[str, Any]


def typescript() -> dict[Path, str]:
    """Return the text of each file: frames about a run, a connection, human input and output, and their members."""
    document = build_frames_document()
    definitions: Schema = document["$defs"]
    names = {tag: _name(reference) for tag, reference in document["discriminator"]["mapping"].items()}
    connection_frames = [name for name in names.values() if "dag_id" not in definitions[name]["properties"]]
    elsewhere = {*connection_frames, *INPUT_FRAMES, *OUTPUT_FRAMES}
    members = [name for name in definitions if name not in names.values()]
    member_names = ", ".join(sorted(members))
    frames = [_interface(name, definitions[name]) for name in names.values() if name not in elsewhere]
    used = ", ".join(name for name in sorted(members) if re.search(rf"\b{name}\b", "".join(frames)))
    frames_file = [
        HEADER,
        "\nimport type { " + ", ".join(sorted(connection_frames)) + ' } from "./connection_frames.js"\n',
        f'import type {{ {used} }} from "./frame_members.js"\n',
        f'import type {{ {", ".join(INPUT_FRAMES)} }} from "./input_frames.js"\n',
        f'import type {{ {", ".join(OUTPUT_FRAMES)} }} from "./output_frames.js"\n\n',
        f'export type {{ {member_names} }} from "./frame_members.js"\n',
        f'export type {{ {", ".join(INPUT_FRAMES)} }} from "./input_frames.js"\n',
        f'export type {{ {", ".join(OUTPUT_FRAMES)} }} from "./output_frames.js"\n\n',
        *frames,
        _comment("Any frame; `type` is the discriminator.", ""),
        "export type Frame =" + "".join(f"\n  | {name}" for name in names.values()) + "\n\n",
        _comment("The frame types that this version supports. Other frames are ignored.", ""),
        "export const FRAME_TYPES = [" + "".join(f'\n  "{tag}",' for tag in names) + "\n] as const\n",
    ]
    connection_file = [
        HEADER,
        *(_interface(name, definitions[name]) for name in connection_frames),
        _comment("Why a connection ends before its stream does; also the close code of a WebSocket.", ""),
        "export const CLOSE_CODES = {" + "".join(map(_close_code, CloseCode)) + "\n} as const\n",
    ]
    input_file = [
        HEADER,
        '\nimport type { InputParam, InputUser, Reference } from "./frame_members.js"\n\n',
        *(_interface(name, definitions[name]) for name in INPUT_FRAMES),
    ]
    output_file = [
        HEADER,
        '\nimport type { Report, ToolRequest, ToolResponse } from "./frame_members.js"\n\n',
        *(_interface(name, definitions[name]) for name in OUTPUT_FRAMES),
    ]
    members_file = [HEADER, "\n", *(_interface(name, definitions[name]) for name in members)]
    texts = {"frames": frames_file, "connection_frames": connection_file, "frame_members": members_file}
    texts |= {"input_frames": input_file, "output_frames": output_file}
    return {SOURCE / f"{name}.ts": "".join(text).rstrip() + "\n" for name, text in texts.items()}


def _interface(name: str, schema: Schema) -> str:
    required = set(schema.get("required", ()))
    members = "".join(_member(key, shape, key in required) for key, shape in schema["properties"].items())
    return f"{_comment(schema.get('description', ''), '')}export interface {name} {{\n{members}}}\n\n"


def _member(name: str, shape: Schema, required: bool) -> str:
    written = _type(shape)
    if name in OPEN_ENUMS and "enum" in shape:
        has_texts = any(isinstance(value, str) for value in shape["enum"])
        written += " | (string & {})" if has_texts else " | (number & {})"
    return f"{_comment(shape.get('description', ''), '  ')}  {name}{'' if required else '?'}: {written}\n"


def _type(shape: Schema) -> str:
    if "$ref" in shape:
        return _name(shape["$ref"])
    if "enum" in shape:
        return " | ".join(map(json.dumps, shape["enum"]))
    if "anyOf" in shape:
        return " | ".join(map(_type, shape["anyOf"]))
    return _plain_type(shape)


def _plain_type(shape: Schema) -> str:
    kind = shape.get("type")
    if kind is None and shape.keys() <= {"description", "default"}:
        return "unknown"
    if kind == "array":
        return f"{_grouped(_type(shape['items']))}[]"
    if kind == "object" and "additionalProperties" in shape:
        return f"Record<string, {_type(shape['additionalProperties'])}>"
    return SCALARS[str(kind)]


def _grouped(written: str) -> str:
    return f"({written})" if "|" in written else written


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _close_code(code: CloseCode) -> str:
    return f"\n  {code.name}: {int(code)},"


def _comment(text: str, indent: str) -> str:
    if not text:
        return ""
    if "\n" not in text and len(text) + len(indent) + len("/**  */") <= LINE_WIDTH:
        return f"{indent}/** {text} */\n"
    lines = [
        line
        for paragraph in text.split("\n")
        for line in (textwrap.wrap(paragraph, LINE_WIDTH - len(indent) - 3) if paragraph else [""])
    ]
    return f"{indent}/**\n" + "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines) + f"{indent} */\n"


if __name__ == "__main__":
    for path, text in typescript().items():
        path.write_text(text)
