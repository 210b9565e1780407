"""OpenAPI paths of AG-UI. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from stream_server import errors
from stream_server.domain.run_state import RunKey
from stream_server.http.agui.capabilities import build_capabilities
from stream_server.http.agui.requests import MAX_ID_LENGTH, decode_run_input
from stream_server.http.agui.translator import AgUiTranslator
from stream_server.http.delivery import sse
from stream_server.http.docs.parameters import build_parameters
from stream_server.http.docs.responses import JSON_TYPE, body_content
from stream_server.protocol import examples
from stream_server.protocol.bodies import Cancelled
from stream_server.protocol.schema import Json, description_of

AG_UI = "/api/v2/dags/{dag_id}/ag-ui"
AG_UI_CONNECT = f"{AG_UI}/{{thread_id}}/connect"
AG_UI_STOP = f"{AG_UI}/{{thread_id}}/stop"

_ID: Json = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}
_RESUME: Json = {
    "type": "object",
    "properties": {
        "interruptId": {"type": "string"},
        "status": {"enum": ["resolved", "cancelled"]},
        "payload": {"description": "The answer: an object of the `responseSchema` of the interrupt, or an option."},
    },
    "required": ["interruptId", "status"],
}
_INPUT: Json = {
    "type": "object",
    "properties": {
        "threadId": {**_ID, "description": "ID of the thread."},
        "runId": {**_ID, "description": "ID of the run of the protocol. A repeated request starts no other DAG run."},
        "messages": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "role": {"type": "string"}, "content": {}},
                "required": ["id", "role"],
            },
            "description": "The conversation. The last message is the question, except with `resume`.",
        },
        "state": {"description": "State of the client. All members but `dag_run` are kept."},
        "resume": {"type": "array", "items": _RESUME, "description": "Answers to the interrupts of the last run."},
    },
    "required": ["threadId", "runId", "messages"],
    "description": "`RunAgentInput` of AG-UI 1.0. Other members are ignored.",
}
_EXAMPLE: Json = {"threadId": "t1", "runId": "r1", "messages": [{"id": "m1", "role": "user", "content": "Why?"}]}


def build_ag_ui_paths(problems: Callable[..., Json], security: list[Json], refused: Collection[int]) -> Json:
    """Return the operations by path; arguments as for `openapi_ai_sdk.build_ai_sdk_paths`."""
    translator = AgUiTranslator(
        RunKey(examples.DAG_ID, examples.RUN_ID), decode_run_input(msgspec.json.encode(_EXAMPLE))
    )
    shown = translator.start() + b"".join([translator.translate(wire.frame) for wire in examples.STREAM])
    stream = {
        "description": "Events of AG-UI 1.0",
        "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": shown.decode()}},
    }
    body = {"required": True, "content": {JSON_TYPE: {"schema": _INPUT, "example": _EXAMPLE}}}
    capabilities = {"schema": {"type": "object"}, "example": build_capabilities(examples.DAG_ID, None)}
    nothing = {"description": "The thread has no run"}
    airflow = (errors.AirflowUrlMissing, errors.AirflowNotResponding, errors.AirflowTimeout)
    refusals = (errors.BadRequest, errors.BadParameter, errors.RequestTooLarge, errors.RunNotFound, *airflow)
    return {
        AG_UI: {
            "post": {
                "operationId": "runAgent",
                "summary": "Ask a DAG a question, or answer its question, as an agent of AG-UI",
                "security": security,
                "parameters": build_parameters(AG_UI),
                "requestBody": body,
                "responses": {
                    "200": stream,
                    **problems(*refusals, errors.IdempotencyKeyReused, refused=refused),
                },
            },
            "get": {
                "operationId": "getAgentCapabilities",
                "summary": "What the agent of a DAG can do",
                "security": security,
                "parameters": build_parameters(AG_UI),
                "responses": {
                    "200": {"description": "`AgentCapabilities` of AG-UI", "content": {JSON_TYPE: capabilities}},
                    **problems(errors.BadParameter, errors.RunNotFound, *airflow, refused=refused),
                },
            },
        },
        AG_UI_CONNECT: {
            "post": {
                "operationId": "connectAgent",
                "summary": "Stream the run of a thread, with only the text that the client lacks",
                "security": security,
                "parameters": build_parameters(AG_UI_CONNECT),
                "requestBody": body,
                "responses": {"200": stream, "204": nothing, **problems(*refusals, refused=refused)},
            }
        },
        AG_UI_STOP: {
            "post": {
                "operationId": "stopAgent",
                "summary": "Cancel the run of a thread, with the caller's rights",
                "security": security,
                "parameters": build_parameters(AG_UI_STOP),
                "responses": {
                    "200": {"description": description_of(Cancelled), "content": {JSON_TYPE: body_content(Cancelled)}},
                    "204": nothing,
                    **problems(errors.BadParameter, *airflow, refused=refused),
                },
            }
        },
    }
