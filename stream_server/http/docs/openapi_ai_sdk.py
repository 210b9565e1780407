"""OpenAPI paths of the UI message stream of the AI SDK. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from stream_server import errors
from stream_server.domain.run_state import RunKey
from stream_server.http.ai_sdk.translator import UiMessageTranslator
from stream_server.http.delivery import sse
from stream_server.http.docs.parameters import build_parameters
from stream_server.http.docs.responses import JSON_TYPE, body_content
from stream_server.protocol import examples
from stream_server.protocol.bodies import Cancelled
from stream_server.protocol.schema import Json, description_of

CHAT = "/api/v2/dags/{dag_id}/chat"
CHAT_STREAM = f"{CHAT}/{{chat_id}}/stream"
CHAT_STOP = f"{CHAT}/{{chat_id}}/stop"

_REQUEST: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 250, "description": "ID of the chat."},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "role": {"type": "string"},
                    "parts": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"type": {"type": "string"}, "text": {"type": "string"}},
                        },
                    },
                },
                "required": ["role"],
            },
            "description": "The conversation. The last message is the question.",
        },
    },
    "required": ["id", "messages"],
    "description": "Other members are ignored.",
}
_EXAMPLE = {
    "id": "c1",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}],
    "trigger": "submit-message",
}


def build_ai_sdk_paths(problems: Callable[..., Json], security: list[Json], refused: Collection[int]) -> Json:
    """Return the operations by path.

    Args:
        problems: Builds error responses of the given error classes and of those common to all requests.
        security: Security requirements.
        refused: Statuses with which Airflow may refuse requests.
    """
    key = RunKey(examples.DAG_ID, examples.RUN_ID)
    translator = UiMessageTranslator(key, resets_steps=False)
    shown = translator.start() + b"".join([translator.translate(wire.frame) for wire in examples.STREAM])
    stream = {
        "description": "A UI message stream, version `v1`",
        "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": shown.decode()}},
    }
    nothing = {"description": "No answer is in progress"}
    airflow = (errors.AirflowUrlMissing, errors.AirflowNotResponding, errors.AirflowTimeout)
    return {
        CHAT: {
            "post": {
                "operationId": "answerChat",
                "summary": "Ask a DAG a question, as `useChat` of the AI SDK",
                "security": security,
                "parameters": build_parameters(CHAT, ("reset",), ("Idempotency-Key",)),
                "requestBody": {"required": True, "content": {JSON_TYPE: {"schema": _REQUEST, "example": _EXAMPLE}}},
                "responses": {
                    "200": stream,
                    **problems(
                        errors.BadRequest,
                        errors.BadParameter,
                        errors.IdempotencyKeyReused,
                        errors.RequestTooLarge,
                        errors.RunNotFound,
                        *airflow,
                        refused=refused,
                    ),
                },
            }
        },
        CHAT_STREAM: {
            "get": {
                "operationId": "resumeChat",
                "summary": "Stream the current answer of a chat from its start",
                "security": security,
                "parameters": build_parameters(CHAT_STREAM, ("reset",)),
                "responses": {
                    "200": stream,
                    "204": nothing,
                    **problems(errors.BadParameter, *airflow, refused=refused),
                },
            }
        },
        CHAT_STOP: {
            "post": {
                "operationId": "stopChat",
                "summary": "Cancel the run of the current answer of a chat, with the caller's rights",
                "security": security,
                "parameters": build_parameters(CHAT_STOP),
                "responses": {
                    "200": {"description": description_of(Cancelled), "content": {JSON_TYPE: body_content(Cancelled)}},
                    "204": nothing,
                    **problems(errors.BadParameter, *airflow, refused=refused),
                },
            }
        },
    }
