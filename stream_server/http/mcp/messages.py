"""JSON-RPC messages, and how Streamable HTTP carries them. Pure."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from stream_server.protocol.schema import INVALID_JSON, Json

RequestId: TypeAlias = str | int

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002
"""Until revision 2025-11-25; later it is `INVALID_PARAMS`."""

HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022

STATUSES = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}
"""HTTP status by code of an error, from revision 2026-07-28 on. All others have 200."""


class RpcError(Exception):
    """A request gets this error as its response."""

    def __init__(self, code: int, message: str, data: Json | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class Message(msgspec.Struct, omit_defaults=True):
    """A request, a notification, or the response to a request of the server."""

    jsonrpc: str
    id: RequestId | msgspec.UnsetType | None = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    result: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    error: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(Message)


def decode_message(body: bytes) -> Message:
    """Return the message of a request body.

    Raises:
        RpcError: The body is not JSON, or not one message. Batches, which only 2025-03-26 has, are not served.
    """
    try:
        message = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RpcError(INVALID_REQUEST, f"The body must be one JSON-RPC message: {error}") from None
    except INVALID_JSON as error:
        raise RpcError(PARSE_ERROR, f"The body must be JSON: {error}") from None
    if message.jsonrpc != "2.0":
        raise RpcError(INVALID_REQUEST, f'`jsonrpc` must be "2.0", got {message.jsonrpc[:20]!r}')
    if message.id is None:
        raise RpcError(INVALID_REQUEST, "`id` must be a string or an integer, got null")
    if message.method is msgspec.UNSET and message.id is msgspec.UNSET:
        raise RpcError(INVALID_REQUEST, "A message must have `method`, or be a response with `id`")
    return message


def build_response(request_id: RequestId, result: Json) -> Json:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def build_error(request_id: RequestId | None, error: RpcError) -> Json:
    body: Json = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": request_id, "error": body}


def build_request(request_id: str, method: str, params: Json) -> Json:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def build_notification(method: str, params: Json) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def encode_event(message: Json, event_id: str | None = None) -> bytes:
    """Return a message as a server-sent event."""
    head = b"" if event_id is None else b"id: " + event_id.encode() + b"\n"
    return head + b"event: message\ndata: " + msgspec.json.encode(message) + b"\n\n"
