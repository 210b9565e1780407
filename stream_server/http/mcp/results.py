"""The result of a call, from the outcome of its run, within a bound that fits the context of an agent. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.http.chat.answer import describe_failure
from stream_server.http.mcp.references import build_run_uri
from stream_server.protocol.frames import End, Failure, Result
from stream_server.protocol.schema import Json

MAX_TEXT_BYTES = 32_768
"""Maximum size of the text of a result. A larger one is cut, and a link to the whole is added."""

SHOWN_CHARACTERS = 2_000
"""Characters that are left of a text that is cut."""

JSON_TYPE = "application/json"


def build_text(text: str, *, is_error: bool = False) -> Json:
    """Return a result with one text."""
    result: Json = {"content": [{"type": "text", "text": text}]}
    if is_error:
        result["isError"] = True
    return result


def build_result(key: RunKey, outcome: Result | Failure | None, end: End | None, *, has_schema: bool = False) -> Json:
    """Return the result of a call whose run has an outcome.

    Args:
        key: The run.
        outcome: The outcome; `None` if there is none.
        end: The end of the run, if it has ended.
        has_schema: Whether the tool has an output schema. Clients refuse its results without structured content,
            unless they are errors.
    """
    match outcome:
        case Failure():
            failed = build_text(describe_failure(outcome), is_error=True)
            failed["content"].append(build_link(key))
            return failed
        case Result(withheld=True):
            return build_text(describe_withheld(key), is_error=True)
        case Result():
            return _build_values(key, outcome, has_schema=has_schema)
        case None:
            reason = "" if end is None or end.reason is None else f" ({end.reason.replace('_', ' ')})"
            return build_text(f"Run {key.run_id!r} has ended without a result{reason}", is_error=has_schema)


def describe_withheld(key: RunKey) -> str:
    return f"The caller may not read the result of run {key.run_id!r}: Airflow denies access to its XComs"


def read_values(outcome: Result) -> Any:  # noqa: ANN401 # any JSON value
    """Return the value of the result: that of its only task, else one for each task."""
    values = {task: msgspec.json.decode(value) for task, value in outcome.results.items()}
    return next(iter(values.values())) if len(values) == 1 and not outcome.references else values


def build_link(key: RunKey, member: str = "", size: int | None = None) -> Json:
    """Return a link to the resource of a run."""
    what = "Result of" if member else "State of"
    link: Json = {
        "type": "resource_link",
        "uri": build_run_uri(key, member),
        "name": f"{what} run {key.run_id}",
        "mimeType": JSON_TYPE,
    }
    if size is not None:
        link["size"] = size
    return link


def _build_values(key: RunKey, outcome: Result, *, has_schema: bool) -> Json:
    if outcome.references:
        parts = [f"{task} ({one.bytes} bytes, at {one.href} of Airflow)" for task, one in outcome.references.items()]
        return build_text(f"These results are too large to be sent: {', '.join(parts)}", is_error=has_schema)
    value = read_values(outcome)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    size, is_object = len(text.encode()), isinstance(value, dict)
    if size > MAX_TEXT_BYTES:
        result = build_text(f"{text[:SHOWN_CHARACTERS]}…\n\n(The first {SHOWN_CHARACTERS} characters of {size} bytes.)")
        result["content"].append(build_link(key, "/result", size))
    else:
        result = build_text(text)
    if is_object and (has_schema or size <= MAX_TEXT_BYTES):
        result["structuredContent"] = value
    elif has_schema:
        result["isError"] = True
    return result
