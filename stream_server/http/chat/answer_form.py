"""Requests for human input as forms with a flat schema, as elicitations of MCP and interrupts of AG-UI have them. Pure.

The schema of an elicitation is flat: only strings, numbers, booleans and choices (2025-11-25, client/elicitation).
"""

from __future__ import annotations

from typing import Any

import msgspec

from stream_server.errors import BadRequest
from stream_server.protocol.bodies import InputAnswer
from stream_server.protocol.input_frames import Input, InputParam
from stream_server.protocol.schema import INVALID_JSON, Json

OPTION_FIELD = "chosen_options"
"""Field for the options of the request. A param of that name gets a `_` before it."""

ONLY_OPTION = ["OK"]
"""Options of `HITLEntryOperator`, which has nothing to choose."""

ACCEPT = "accept"
ACTIONS = (ACCEPT, "decline", "cancel")
"""What a user does with a request."""

_PRIMITIVES = ("string", "integer", "number", "boolean")
_KEPT = ("minLength", "maxLength", "minimum", "maximum", "format", "enum", "title")
_TYPES = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"))
_FORMATS = ("email", "uri", "date", "date-time")


def build_elicitation(request: Input) -> Json:
    """Return the params of `elicitation/create`."""
    properties: Json = {}
    required: list[str] = []
    if request.options != ONLY_OPTION:
        properties[OPTION_FIELD] = _build_option_field(request)
        required.append(OPTION_FIELD)
    for name, param in request.params.items():
        field = _build_field(param)
        properties[_name_field(name)] = field
        if "default" not in field and field["type"] != "boolean" and not _is_optional(param):
            required.append(_name_field(name))
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    text = "\n\n".join([part for part in (request.subject, request.body) if part])
    return {"mode": "form", "message": text or f"Task {request.task_id!r} asks", "requestedSchema": schema}


def read_answer(content: Any, request: Input) -> InputAnswer:  # noqa: ANN401 # any JSON value
    """Return the answer that a user has given. Airflow checks the values.

    Raises:
        BadRequest: No option is chosen. Airflow chooses the default, if there is no answer in time.
    """
    given = content if isinstance(content, dict) else {}
    chosen = given.get(OPTION_FIELD, request.options if request.options == ONLY_OPTION else None)
    chosen = chosen if isinstance(chosen, list) else [chosen]
    if not chosen or not all(isinstance(option, str | int | float) for option in chosen):
        raise BadRequest(f"The answer must have `{OPTION_FIELD}`, with {_list_options(request)}")
    params = {}
    for name, param in request.params.items():
        # Airflow needs all fields, and a form may leave out those with a default.
        field = _name_field(name)
        params[name] = _read_value(given[field], param) if field in given else _decode(param.value)
    return InputAnswer([str(option) for option in chosen], params, request.asked_at.isoformat())


def _list_options(request: Input) -> str:
    kind = "one or more" if request.multiple else "one"
    return f"{kind} of {', '.join([repr(option) for option in request.options])}"


def _name_field(name: str) -> str:
    return f"_{name}" if name == OPTION_FIELD else name


def _build_option_field(request: Input) -> Json:
    choice: Json = {"type": "string", "enum": request.options}
    field: Json = {"type": "array", "items": choice, "minItems": 1} if request.multiple else choice
    field["title"] = "Answer"
    if request.defaults:
        field["default"] = request.defaults if request.multiple else request.defaults[0]
    return field


def _build_field(param: InputParam) -> Json:
    schema = _decode(param.schema)
    schema = schema if isinstance(schema, dict) else {}
    kind = _find_type(schema, _decode(param.value))
    items = _build_items(schema)
    if items is not None:
        kind, field = "array", {"type": "array", "items": items}
        field |= {name: schema[name] for name in ("minItems", "maxItems", "title") if name in schema}
    else:
        field = {"type": kind or "string"}
    if items is None and kind is not None:
        field |= {name: schema[name] for name in _KEPT if name in schema}
        field |= _build_titled_options(schema)
    if field.get("format") not in (None, *_FORMATS):
        del field["format"]
    if "enum" in field:
        field["enum"] = [option for option in field["enum"] if option is not None]
    if param.description is not None:
        field["description"] = param.description
    elif kind is None:
        field["description"] = "A JSON value"
    value = _decode(param.value)
    if value is not None:
        field["default"] = value if kind is not None else bytes(param.value).decode()
    return field


def _build_items(schema: dict[str, Any]) -> Json | None:
    """Return the choices of a field of which a user selects several; `None` if it is no such field."""
    items = schema.get("items")
    if "array" not in _read_types(schema) or not isinstance(items, dict):
        return None
    if _are_texts(items.get("enum")):
        return {"type": "string", "enum": items["enum"]}
    return {"anyOf": items["anyOf"]} if _are_titled(items.get("anyOf")) else None


def _build_titled_options(schema: dict[str, Any]) -> Json:
    """Return the choices of a field that have titles."""
    names, values = schema.get("enumNames"), schema.get("enum")
    if _are_titled(schema.get("oneOf")):
        return {"oneOf": schema["oneOf"]}
    if (
        isinstance(names, list)
        and isinstance(values, list)
        and _are_texts(names + values)
        and len(names) == len(values)
    ):
        return {"enumNames": names}
    return {}


def _are_texts(options: Any) -> bool:  # noqa: ANN401 # any JSON value
    return isinstance(options, list) and all(isinstance(option, str) for option in options)


def _are_titled(options: Any) -> bool:  # noqa: ANN401 # any JSON value
    return isinstance(options, list) and all(
        isinstance(option, dict) and _are_texts([option.get("const"), option.get("title")]) for option in options
    )


def _is_optional(param: InputParam) -> bool:
    schema = _decode(param.schema)
    types = _read_types(schema) if isinstance(schema, dict) else [None]
    return types == [None] or "null" in types


def _read_types(schema: dict[str, Any]) -> list[Any]:
    declared = schema.get("type")
    return declared if isinstance(declared, list) else [declared]


def _find_type(schema: dict[str, Any], value: Any) -> str | None:  # noqa: ANN401 # any JSON value
    """Return the type of a field; `None` if a form has none for it, so that the user writes JSON."""
    types = [one for one in _read_types(schema) if one != "null"]
    if len(types) == 1 and types[0] in _PRIMITIVES:
        return str(types[0])
    if types not in ([], [None]):
        return None
    if value is None:
        return "string"
    return next((name for kind, name in _TYPES if isinstance(value, kind)), None)


def _read_value(value: Any, param: InputParam) -> Any:  # noqa: ANN401 # any JSON value
    schema = _decode(param.schema)
    if isinstance(value, str) and _find_type(schema if isinstance(schema, dict) else {}, _decode(param.value)) is None:
        try:
            return msgspec.json.decode(value)
        except INVALID_JSON:
            return value
    return value


def _decode(raw: msgspec.Raw) -> Any:  # noqa: ANN401 # any JSON value
    return msgspec.json.decode(raw)
