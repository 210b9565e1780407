"""Texts that name runs, requests and clients, so that the server has to store none of them. Pure.

They are not signed. A client can make them up, but each use is checked with the caller's own rights.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import msgspec

from stream_server.domain.run_state import RunKey

MAX_LENGTH = 4000

URI_SCHEME = "dag-run:"

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Session(msgspec.Struct, array_like=True, frozen=True):
    """What a client has sent with `initialize`. It is the session id."""

    version: str
    elicits: bool
    """Whether the client can ask its user."""

    nonce: str


class CallReference(msgspec.Struct, array_like=True, frozen=True):
    """A call of a tool, and its run. It is the id of an event, and the state of a request."""

    dag_id: str
    run_id: str
    request_id: str | int | None = None
    progress_token: str | int | None = None
    progress: int = 0
    """Progress notifications that were sent."""

    asked_at: str | None = None
    """When the task asked whose request the client has."""

    task_id: str | None = None
    map_index: int = -1
    has_schema: bool = False
    """Whether the tool has an output schema."""

    @property
    def key(self) -> RunKey:
        return RunKey(self.dag_id, self.run_id)


def encode_reference(value: msgspec.Struct | RunKey) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def decode_reference(text: object, kind: type[_Struct]) -> _Struct | None:
    """Return what a text names; `None` if it is not valid."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (binascii.Error, ValueError, RecursionError):
        return None


def build_run_uri(key: RunKey, member: str = "") -> str:
    """Return the URI of the resource of a run, or of a part of it (`/result`)."""
    return f"{URI_SCHEME}//{quote(key.dag_id, safe='')}/{quote(key.run_id, safe='')}{member}"


def parse_run_uri(uri: Any) -> tuple[RunKey, bool] | None:  # noqa: ANN401 # any JSON value
    """Return the run that a URI names, and whether its result is meant; `None` if it names none."""
    if not isinstance(uri, str) or len(uri) > MAX_LENGTH or not uri.startswith(f"{URI_SCHEME}//"):
        return None
    match [unquote(part) for part in uri.removeprefix(f"{URI_SCHEME}//").split("/")]:
        case [dag_id, run_id] if dag_id and run_id:
            return RunKey(dag_id, run_id), False
        case [dag_id, run_id, "result"] if dag_id and run_id:
            return RunKey(dag_id, run_id), True
        case _:
            return None
