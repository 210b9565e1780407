"""DAGs as tools: names, descriptions, schemas and annotations. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from stream_server.domain.dag_description import DagDescription
from stream_server.protocol.schema import INVALID_JSON, Json

TOOL_TAG = "tool"
"""Tag of the DAGs that are tools."""

ANNOTATION_TAGS = {
    "tool:read-only": ("readOnlyHint", True),
    "tool:destructive": ("destructiveHint", True),
    "tool:not-destructive": ("destructiveHint", False),
    "tool:idempotent": ("idempotentHint", True),
    "tool:closed-world": ("openWorldHint", False),
}
"""Annotation of a tool, by tag of its DAG."""

NO_TASK_TAG = "tool:no-task"
"""Tag of the DAGs whose calls never become tasks: they are quick."""

WAIT_TOOL = "wait_for_dag_run"
"""Name of the tool that waits for a run that takes long."""

MAX_NAME_LENGTH = 128
MAX_DESCRIPTION_LENGTH = 4000
_HASH_LENGTH = 8
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_OUTPUT_SCHEMA = re.compile(r"^```json output-schema\s*\n(.*?)\n```[ \t]*$\n?", re.MULTILINE | re.DOTALL)


def name_tool(dag_id: str) -> str:
    """Return the name of the tool of a DAG: the id, or one made of it if it is too long or has other characters."""
    name = _NOT_IN_NAMES.sub("_", dag_id)
    if name == dag_id and len(name) <= MAX_NAME_LENGTH and name != WAIT_TOOL:
        return name
    digest = hashlib.sha256(dag_id.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: MAX_NAME_LENGTH - _HASH_LENGTH - 1]}_{digest}"


def build_tool(dag: DagDescription) -> Json:
    """Return the tool of a DAG, without members that only one revision has."""
    documentation, output_schema = _split_documentation(dag.documentation)
    tool: Json = {"name": name_tool(dag.dag_id)}
    if dag.title is not None and dag.title != dag.dag_id:
        tool["title"] = dag.title
    description = "\n\n".join([text for text in (dag.description, documentation) if text])
    tool["description"] = description[:MAX_DESCRIPTION_LENGTH] or f"Runs the Airflow DAG {dag.dag_id}."
    tool["inputSchema"] = build_input_schema(dag.params)
    if output_schema is not None:
        tool["outputSchema"] = output_schema
    annotations = dict(ANNOTATION_TAGS[tag] for tag in sorted(dag.tags) if tag in ANNOTATION_TAGS)
    if annotations:
        tool["annotations"] = annotations
    return tool


def build_input_schema(params: Any) -> Json:  # noqa: ANN401 # any JSON value
    """Return the JSON Schema of the params of a serialised DAG. Airflow accepts more, and checks them itself."""
    properties: Json = {}
    required: list[str] = []
    for name, param in _iter_params(params):
        schema = _decode(param.get("schema"))
        described: Json = dict(schema) if isinstance(schema, dict) else {}
        # Clients would repeat the value in a header, which servers must compare (2026-07-28, basic/transports).
        described.pop("x-mcp-header", None)
        if isinstance(param.get("description"), str):
            described["description"] = param["description"]
        default = _decode(param.get("default"))
        if _is_missing(param.get("default")) or (default is None and not _permits_null(described)):
            required.append(name)
        else:
            described["default"] = default
        properties[name] = described
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if not properties:
        del schema["properties"]
    if required:
        schema["required"] = required
    return schema


def _iter_params(params: Any) -> list[tuple[str, dict[str, Any]]]:  # noqa: ANN401 # any JSON value
    pairs = params.items() if isinstance(params, dict) else params if isinstance(params, list) else ()
    found = []
    for pair in pairs:
        match list(pair) if isinstance(pair, list | tuple) else ():
            case [str() as name, dict() as param]:
                found.append((name, param))
    return found


def _is_missing(default: Any) -> bool:  # noqa: ANN401 # any JSON value
    """Whether a param has no default (`airflow.serialization.definitions.notset`)."""
    return isinstance(default, dict) and default.get("__type") == "arg_not_set"


def _permits_null(schema: Json) -> bool:
    types = schema.get("type")
    if types is None:
        options = schema.get("enum")
        return not isinstance(options, list) or None in options
    return "null" in types if isinstance(types, list) else types == "null"


def _decode(value: Any) -> Any:  # noqa: ANN401 # any JSON value
    """Return a value of a serialised DAG as plain JSON (`airflow.serialization.serialized_objects`)."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"__type": "dict", "__var": dict() as members}:
            return {name: _decode(item) for name, item in members.items()}
        case {"__type": "set" | "tuple", "__var": list() as items}:
            return [_decode(item) for item in items]
        case {"__type": _}:
            return None
        case _:
            return {name: _decode(item) for name, item in value.items()}


def _split_documentation(text: str | None) -> tuple[str, Json | None]:
    """Return the documentation without the block that has the schema of the result, and that schema."""
    if text is None:
        return "", None
    block = _OUTPUT_SCHEMA.search(text)
    if block is None:
        return text.strip(), None
    try:
        schema = msgspec.json.decode(block[1], type=dict[str, Any])
    except INVALID_JSON:
        schema = None
    if schema is None or schema.get("type") != "object":
        return text.strip(), None
    return _OUTPUT_SCHEMA.sub("", text, count=1).strip(), schema
