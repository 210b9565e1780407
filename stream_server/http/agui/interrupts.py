"""Requests for human input as interrupts of AG-UI. Pure."""

from __future__ import annotations

from typing import Any

from stream_server.http.chat.answer_form import OPTION_FIELD, build_elicitation, read_answer
from stream_server.protocol.bodies import InputAnswer
from stream_server.protocol.input_frames import Input
from stream_server.protocol.schema import Json

CONFIRMATION_OPTIONS = 2
"""Options of a question that a boolean can answer: the first one approves, as in Airflow's `ApprovalOperator`."""

APPROVED = "approved"
"""Member of the payload with which clients of AG-UI answer an approval."""


def identify_interrupt(request: Input) -> str:
    """Return the id of the interrupt. It is another one if the task asks again."""
    iteration = "" if request.iteration is None else f"/{request.iteration}"
    return f"{request.task_id}/{request.map_index}{iteration}@{request.asked_at.isoformat()}"


def is_answerable(request: Input) -> bool:
    """Whether the client gets the whole question."""
    return not request.withheld and request.reference is None


def build_interrupt(request: Input) -> Json:
    form = build_elicitation(request)
    interrupt: Json = {
        "id": identify_interrupt(request),
        "reason": "confirmation" if _is_confirmation(request) else "input_required",
        "message": form["message"],
        "responseSchema": form["requestedSchema"],
        "metadata": {"airflow": {"task_id": request.task_id, "map_index": request.map_index}},
    }
    if request.expires_at is not None:
        interrupt["expiresAt"] = request.expires_at.isoformat()
    return interrupt


def read_payload(payload: Any, request: Input) -> InputAnswer:  # noqa: ANN401 # any JSON value
    """Return the answer of a payload: an object of the schema, an option, several, or whether the user approves."""
    if isinstance(payload, dict) and OPTION_FIELD not in payload and isinstance(payload.get(APPROVED), bool):
        payload = {**payload, OPTION_FIELD: payload[APPROVED]}
    elif isinstance(payload, bool | str | list):
        payload = {OPTION_FIELD: payload}
    if isinstance(payload, dict) and isinstance(payload.get(OPTION_FIELD), bool) and _is_confirmation(request):
        payload = {**payload, OPTION_FIELD: request.options[0 if payload[OPTION_FIELD] else 1]}
    return read_answer(payload, request)


def _is_confirmation(request: Input) -> bool:
    return len(request.options) == CONFIRMATION_OPTIONS and not request.multiple and not request.params
