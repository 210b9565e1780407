"""OpenAPI paths of OpenAI's API. Pure."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from stream_server.http.delivery import sse
from stream_server.http.docs.parameters import build_parameters
from stream_server.http.docs.responses import JSON_TYPE, build_headers
from stream_server.http.openai.chunks import DONE, CompletionHead, build_error, build_model, build_usage
from stream_server.http.openai.response_objects import ResponseHead, encode_named_event
from stream_server.protocol import examples
from stream_server.protocol.schema import Json

MODELS = "/v1/models"
MODEL = "/v1/models/{model}"
COMPLETIONS = "/v1/chat/completions"
RESPONSES = "/v1/responses"
RESPONSE = f"{RESPONSES}/{{response_id}}"
CANCEL = f"{RESPONSE}/cancel"

ERRORS = {
    "400": "The request is invalid, or the DAG is paused",
    "401": "Airflow does not accept the key",
    "403": "The caller may not trigger the DAG, or not read its result; or the origin of the page is not allowed",
    "404": "There is no such model, or the caller may not read it",
    "413": "The body is too large",
    "429": "The caller exceeds a limit",
    "default": "The run has no answer, Airflow does not answer, or the server can't serve the request now",
}
"""Descriptions of error responses by status. Airflow's other statuses are passed on."""

_HEAD = CompletionHead(f"chatcmpl-{examples.RUN_ID}", 1764400000, examples.DAG_ID)
_QUESTION = {"model": examples.DAG_ID, "messages": [{"role": "user", "content": "Why?"}], "stream": True}
_ANSWER = _HEAD.build_completion("Because.", build_usage(None))
_STREAM = _HEAD.build_chunk({"role": "assistant", "content": "Because."}) + _HEAD.build_chunk({}, "stop") + DONE

_TEXT: Json = {"type": "string"}
_MODEL: Json = {
    "type": "object",
    "properties": {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT},
    "required": ["id", "object", "created", "owned_by"],
}
_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT},
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_CONTENT: Json = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"type": _TEXT, "text": _TEXT}},
            "description": "Parts. Only those with text are read.",
        },
        {"type": "null"},
    ]
}
_REQUEST: Json = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "ID of a DAG with the tag `chat`."},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"role": _TEXT, "content": _CONTENT},
                "required": ["role"],
            },
            "description": "The conversation. The last message is the question.",
        },
        "stream": {"type": ["boolean", "null"], "description": "Whether the answer is streamed."},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
            "description": "`include_usage`: whether the stream ends with the usage.",
        },
        "n": {"enum": [1, None], "description": "Number of answers."},
    },
    "required": ["model", "messages"],
    "description": "Other members are ignored.",
}
_COMPLETION: Json = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object"}},
        "usage": {"type": "object"},
    },
    "required": ["id", "object", "created", "model", "choices", "usage"],
}
_RESPONSE_REQUEST: Json = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "ID of a DAG with the tag `chat`."},
        "input": {
            "anyOf": [{"type": "string", "minLength": 1}, _REQUEST["properties"]["messages"]],
            "description": "The question, or a conversation whose last message is the question.",
        },
        "instructions": {"type": ["string", "null"], "description": "The first message, of the system."},
        "previous_response_id": {
            "type": ["string", "null"],
            "description": "ID of the response to the question before; its conversation comes first.",
        },
        "stream": {"type": ["boolean", "null"], "description": "Whether the response is streamed."},
        "background": {
            "type": ["boolean", "null"],
            "description": "Whether to respond at once, and to continue without the client.",
        },
        "metadata": {
            "type": ["object", "null"],
            "additionalProperties": _TEXT,
            "description": "Returned in the response to this request. It is not stored.",
        },
    },
    "required": ["model", "input"],
    "description": "Other members are ignored.",
}
_RESPONSE: Json = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "status": {"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        "model": _TEXT,
        "output": {"type": "array", "maxItems": 1, "items": {"type": "object"}},
        "error": {"type": ["object", "null"]},
    },
    "required": ["id", "object", "created_at", "status", "model", "output", "error"],
}


def build_openai_paths(security: list[Json]) -> Json:
    """Return the operations by path."""
    shared = {"security": security, "description": "Also served without `/v1`."}
    page: Json = {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
        "required": ["object", "data"],
    }
    model = build_model(examples.DAG_ID)
    return {
        MODELS: {
            "get": {
                "operationId": "listModels",
                "summary": "List the DAGs that answer questions, as models of OpenAI's API",
                **shared,
                "responses": {
                    "200": _respond_with("The models", page, {"object": "list", "data": [model]}),
                    **_errors("401", "403", "429", "default"),
                },
            }
        },
        MODEL: {
            "get": {
                "operationId": "getModel",
                "summary": "Get a DAG that answers questions, as a model of OpenAI's API",
                **shared,
                "parameters": build_parameters(MODEL),
                "responses": {
                    "200": _respond_with("The model", _MODEL, model),
                    **_errors("400", "401", "404", "429", "default"),
                },
            }
        },
        COMPLETIONS: {"post": _build_completion_operation(shared)},
        **_build_response_paths(shared),
    }


def _build_completion_operation(shared: Json) -> Json:
    success = _respond_with("The answer", _COMPLETION, _ANSWER)
    success["content"][sse.MEDIA_TYPE] = {"schema": {"type": "string"}, "example": _STREAM.decode()}
    success["headers"] = build_headers({"Location": "URL of the run."})
    return {
        "operationId": "completeChat",
        "summary": "Ask a DAG a question, as with Chat Completions of OpenAI's API",
        **shared,
        "parameters": build_parameters(COMPLETIONS, (), ("Idempotency-Key",)),
        "requestBody": {"required": True, "content": {JSON_TYPE: {"schema": _REQUEST, "example": _QUESTION}}},
        "responses": {"200": success, **_errors(*ERRORS)},
    }


def _build_response_paths(shared: Json) -> Json:
    head = ResponseHead(RunKey(examples.DAG_ID, examples.RUN_ID), 1764400000)
    shown = head.build_response("completed", "Because.", usage=build_usage(None))
    success = _respond_with("The response", _RESPONSE, shown)
    started = {"response": head.build_response("in_progress")}
    streamed = {**success, "content": {**success["content"], sse.MEDIA_TYPE: {"schema": {"type": "string"}}}}
    streamed["content"][sse.MEDIA_TYPE]["example"] = encode_named_event("response.created", 0, started).decode()
    question = {"model": examples.DAG_ID, "input": "Why?", "background": True}
    return {
        RESPONSES: {
            "post": {
                "operationId": "createResponse",
                "summary": "Ask a DAG a question, as with Responses of OpenAI's API",
                **shared,
                "parameters": build_parameters(RESPONSES, (), ("Idempotency-Key",)),
                "requestBody": {
                    "required": True,
                    "content": {JSON_TYPE: {"schema": _RESPONSE_REQUEST, "example": question}},
                },
                "responses": {"200": streamed, **_errors(*ERRORS)},
            }
        },
        RESPONSE: {
            "get": {
                "operationId": "getResponse",
                "summary": "Get a response, or stream it from its start or after an event",
                **shared,
                "parameters": build_parameters(RESPONSE, ("stream", "starting_after")),
                "responses": {"200": streamed, **_errors("400", "401", "403", "404", "429", "default")},
            }
        },
        CANCEL: {
            "post": {
                "operationId": "cancelResponse",
                "summary": "Cancel the run of a response, with the caller's rights",
                **shared,
                "parameters": build_parameters(CANCEL),
                "responses": {"200": success, **_errors("400", "401", "403", "404", "429", "default")},
            }
        },
    }


def _respond_with(description: str, schema: Json, example: Json) -> Json:
    return {"description": description, "content": {JSON_TYPE: {"schema": schema, "example": example}}}


def _errors(*statuses: str) -> Json:
    default_status = 502
    return {
        status: _respond_with(
            ERRORS[status],
            _ERROR,
            build_error(ERRORS[status], int(status) if status.isdecimal() else default_status, "code"),
        )
        for status in statuses
    }
