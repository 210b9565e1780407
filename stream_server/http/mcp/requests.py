"""The request of a client: its revision, what the client can do, and whether headers and members agree. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from stream_server.http.mcp.messages import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    UNSUPPORTED_VERSION,
    Message,
    RequestId,
    RpcError,
)
from stream_server.http.mcp.references import Session, decode_reference

MODERN_VERSION = "2026-07-28"
SESSION_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Revisions that begin with `initialize`. The first is the newest."""

ASSUMED_VERSION = "2025-03-26"
"""Revision of a request without the header (2025-11-25, basic/transports, Protocol Version Header)."""

VERSION_HEADER, METHOD_HEADER, NAME_HEADER = "mcp-protocol-version", "mcp-method", "mcp-name"
SESSION_HEADER = "mcp-session-id"

_META = "io.modelcontextprotocol/"
VERSION_META, CAPABILITIES_META = f"{_META}protocolVersion", f"{_META}clientCapabilities"
TASKS_EXTENSION = f"{_META}tasks"

NAME_MEMBERS = {"tools/call": "name", "resources/read": "uri", "prompts/get": "name"}
"""Member that the header `Mcp-Name` repeats, by method."""

TASK_METHODS = ("tasks/get", "tasks/update", "tasks/cancel")
"""Methods whose header `Mcp-Name` is the id of the task. Clients may leave it out."""

_ENCODED_PREFIX, _ENCODED_SUFFIX = "=?base64?", "?="


class SessionUnknown(Exception):
    """The client must begin a new session."""


class McpRequest(NamedTuple):
    """A request."""

    id: RequestId
    method: str
    params: dict[str, Any]
    version: str
    elicits: bool
    """Whether the client can ask its user."""

    wants_tasks: bool
    """Whether the client can follow a call as a task of revision 2026-07-28."""

    session_id: str | None = None

    @property
    def is_modern(self) -> bool:
        """Whether the request stands alone, without `initialize` and without a session."""
        return self.version == MODERN_VERSION

    @property
    def progress_token(self) -> RequestId | None:
        """The token of progress notifications; `None` if the client wants none."""
        meta = self.params.get("_meta")
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        return token if isinstance(token, str | int) and not isinstance(token, bool) else None

    @property
    def is_old_task(self) -> bool:
        """Whether the client wants a call as a task of revision 2025-11-25."""
        return self.version == SESSION_VERSIONS[0] and isinstance(self.params.get("task"), dict)

    def read_text(self, name: str) -> str:
        """Return a member of the params.

        Raises:
            RpcError: It is missing, or not a text.
        """
        value = self.params.get(name)
        if not isinstance(value, str):
            raise RpcError(INVALID_PARAMS, f"`params.{name}` must be a string, got {_describe(value)}")
        return value


def is_modern_request(message: Message, headers: Mapping[str, str]) -> bool:
    """Whether a request has the members of revision 2026-07-28, or names it."""
    meta = _read_meta(message)
    return VERSION_META in meta or headers.get(VERSION_HEADER) == MODERN_VERSION


def read_request(message: Message, headers: Mapping[str, str]) -> McpRequest:
    """Return the request of a message.

    Args:
        message: A message with `method` and `id`.
        headers: Headers of the HTTP request, with names in lower case.

    Raises:
        RpcError: Headers and message do not fit together, or the revision is not served.
        SessionUnknown: The session is not one of this server.
    """
    if is_modern_request(message, headers):
        return _read_modern(message, headers)
    session_id = headers.get(SESSION_HEADER)
    session = None if session_id is None else decode_reference(session_id, Session)
    if session_id is not None and (session is None or session.version not in SESSION_VERSIONS):
        raise SessionUnknown
    version = headers.get(VERSION_HEADER) or (ASSUMED_VERSION if session is None else session.version)
    if message.method != "initialize" and version not in SESSION_VERSIONS:
        raise _refuse_version(version, [MODERN_VERSION, *SESSION_VERSIONS])
    return McpRequest(*_read_head(message), version, session is not None and session.elicits, False, session_id)


def _read_modern(message: Message, headers: Mapping[str, str]) -> McpRequest:
    meta = _read_meta(message)
    missing = [name for name in (VERSION_META, CAPABILITIES_META) if name not in meta]
    if missing:
        raise RpcError(INVALID_PARAMS, f"`params._meta` must have {' and '.join(missing)}")
    version, capabilities = meta[VERSION_META], meta[CAPABILITIES_META]
    request_id, method, params = _read_head(message)
    named = NAME_MEMBERS.get(method)
    expected = {VERSION_HEADER: version, METHOD_HEADER: method}
    if named is not None and params.get(named) is not None:
        expected[NAME_HEADER] = params[named]
    elif method in TASK_METHODS and NAME_HEADER in headers:
        expected[NAME_HEADER] = params.get("taskId")
    for header, value in expected.items():
        if _decode_header(headers.get(header)) != value:
            raise RpcError(
                HEADER_MISMATCH, f"The header `{header}` must be equal to the body, got {headers.get(header)}"
            )
    if version != MODERN_VERSION:
        # Those of `server/discover`: requests of earlier revisions have another form.
        raise _refuse_version(version, [MODERN_VERSION])
    found = capabilities if isinstance(capabilities, dict) else {}
    extensions = found.get("extensions")
    wants_tasks = isinstance(extensions, dict) and TASKS_EXTENSION in extensions
    return McpRequest(request_id, method, params, version, can_ask_user(found), wants_tasks)


def can_ask_user(capabilities: Any) -> bool:  # noqa: ANN401 # any JSON value
    """Whether a client can show forms to its user. An empty object means forms (2025-11-25, client/elicitation)."""
    elicitation = capabilities.get("elicitation") if isinstance(capabilities, dict) else None
    return isinstance(elicitation, dict) and (not elicitation or "form" in elicitation)


def _read_meta(message: Message) -> dict[str, Any]:
    meta = message.params.get("_meta") if isinstance(message.params, dict) else None
    return meta if isinstance(meta, dict) else {}


def _read_head(message: Message) -> tuple[RequestId, str, dict[str, Any]]:
    if message.id is None or message.id is msgspec.UNSET or message.method is msgspec.UNSET:
        raise RpcError(INVALID_REQUEST, "A request must have `id` and `method`")
    return message.id, message.method, {} if message.params is msgspec.UNSET else message.params


def _refuse_version(version: object, supported: Sequence[str]) -> RpcError:
    return RpcError(
        UNSUPPORTED_VERSION,
        f"Protocol version {str(version)[:40]!r} is not served",
        {"supported": [*supported], "requested": str(version)[:40]},
    )


def _decode_header(value: str | None) -> str | None:
    """Return the text of a header, which may be encoded (2026-07-28, basic/transports, Header Encoding)."""
    value = None if value is None else value.strip(" \t")
    if value is None or not (value.startswith(_ENCODED_PREFIX) and value.endswith(_ENCODED_SUFFIX)):
        return value
    try:
        return base64.b64decode(value[len(_ENCODED_PREFIX) : -len(_ENCODED_SUFFIX)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _describe(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
