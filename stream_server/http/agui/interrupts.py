"""Requests for human input as interrupts of AG-UI. Pure."""

from __future__ import annotations

from typing import Any

from stream_server.errors import BadRequest
from stream_server.http.chat.answer_form import ONLY_OPTION, OPTION_FIELD, build_elicitation, read_answer
from stream_server.protocol.bodies import InputAnswer
from stream_server.protocol.input_frames import Input
from stream_server.protocol.schema import Json

CONFIRMATION_OPTIONS = ["Approve", "Reject"]
"""Options of a question that a boolean can answer: those of Airflow's `ApprovalOperator`."""

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
    """Return the answer of a payload: an object of the schema, an option, several, or whether the user approves.

    Raises:
        BadRequest: The payload does not answer the question.
    """
    given: Json = payload if isinstance(payload, dict) else {}
    if isinstance(payload, bool | str | list):
        given = {OPTION_FIELD: payload}
    elif OPTION_FIELD not in given and isinstance(given.get(APPROVED), bool) and APPROVED not in request.params:
        given = {**given, OPTION_FIELD: given[APPROVED]}
    if isinstance(given.get(OPTION_FIELD), bool):
        given = {**given, OPTION_FIELD: _choose(request, is_approved=given[OPTION_FIELD])}
    return read_answer(given, request)


def _choose(request: Input, *, is_approved: bool) -> str:
    if request.options == ONLY_OPTION and is_approved:
        return ONLY_OPTION[0]
    if not _has_approval(request):
        options = ", ".join([repr(option) for option in request.options])
        raise BadRequest(f"A boolean does not answer this question; the payload must have `{OPTION_FIELD}`: {options}")
    return CONFIRMATION_OPTIONS[0 if is_approved else 1]


def _has_approval(request: Input) -> bool:
    return request.options == CONFIRMATION_OPTIONS and not request.multiple


def _is_confirmation(request: Input) -> bool:
    return _has_approval(request) and not request.params
