"""OpenAPI path of the Model Context Protocol. Pure."""

from __future__ import annotations

from collections.abc import Callable

from stream_server import errors
from stream_server.http.delivery import sse
from stream_server.http.docs.responses import JSON_TYPE, PROBLEM_TYPE
from stream_server.http.mcp.authorization import METADATA
from stream_server.http.mcp.messages import RpcError, build_error, build_response
from stream_server.http.mcp.results import build_text
from stream_server.protocol.schema import Json, reference_to

MCP = "/mcp"

_MESSAGE: Json = {
    "type": "object",
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer", "null"]},
        "method": {"type": "string"},
        "params": {"type": "object"},
        "result": {"type": "object"},
        "error": {
            "type": "object",
            "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
            "required": ["code", "message"],
        },
    },
    "required": ["jsonrpc"],
}
_CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "forecast", "arguments": {}}}
_METADATA = {
    "resource": "https://stream.example.com/mcp",
    "authorization_servers": ["https://login.example.com/realms/airflow"],
}
_RESULT = build_response(1, build_text("Sunny."))
_REFUSED = build_error(1, RpcError(-32602, "There is no tool 'forecast'"))


def build_mcp_paths(problems: Callable[..., Json], security: list[Json]) -> Json:
    """Return the operations by path.

    Args:
        problems: Builds error responses of the given error classes and of those common to all requests.
        security: Security requirements.
    """
    stream = {"schema": {"type": "string"}, "example": "event: message\ndata: {…}\n\n"}
    refused = {"content": {JSON_TYPE: {"schema": _MESSAGE, "example": _REFUSED}}}
    return {
        MCP: {
            "post": {
                "operationId": "sendMcpMessage",
                "summary": "A message of the Model Context Protocol; the tools are the DAGs with the tag `tool`",
                "security": security,
                "requestBody": {"required": True, "content": {JSON_TYPE: {"schema": _MESSAGE, "example": _CALL}}},
                "responses": {
                    **problems(errors.RequestTooLarge, errors.AirflowUrlMissing, errors.AirflowNotResponding),
                    "200": {
                        "description": "The response to a request, or a stream that ends with it",
                        "content": {JSON_TYPE: {"schema": _MESSAGE, "example": _RESULT}, sse.MEDIA_TYPE: stream},
                    },
                    "202": {"description": "A notification or response was received"},
                    "400": {"description": "The message is not valid", **refused},
                    "404": {"description": "There is no such method or session", **refused},
                },
            },
            "get": {
                "operationId": "resumeMcpResponse",
                "summary": "Continue the stream of a response after the event `Last-Event-ID`",
                "security": security,
                "parameters": [
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "ID of the last event that was received.",
                        "schema": {"type": "string"},
                    }
                ],
                "responses": {
                    **problems(errors.RunNotFound, errors.AirflowUrlMissing, errors.AirflowNotResponding),
                    "200": {"description": "The rest of the stream", "content": {sse.MEDIA_TYPE: stream}},
                    "405": {"description": "There is nothing to continue: the server sends nothing without a request"},
                },
            },
        },
        METADATA + MCP: {
            "get": {
                "operationId": "getMcpResourceMetadata",
                "summary": "Authorization servers whose tokens Airflow accepts (RFC 9728), if that is configured",
                "security": [],
                "responses": {
                    **problems(),
                    "200": {
                        "description": "The metadata",
                        "content": {JSON_TYPE: {"schema": {"type": "object"}, "example": _METADATA}},
                    },
                    "404": {
                        "description": "No authorization server is configured",
                        "content": {PROBLEM_TYPE: {"schema": reference_to("Problem")}},
                    },
                },
            }
        },
    }
