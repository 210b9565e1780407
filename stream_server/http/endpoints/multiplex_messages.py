"""Messages from clients on the multiplexed WebSocket, such as `{"op": "subscribe", "id": "a", …}`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadParameter, BadRequest
from stream_server.http.websocket_auth import Introduction
from stream_server.protocol.schema import INVALID_JSON


class Subscribe(msgspec.Struct, tag_field="op", tag="subscribe", forbid_unknown_fields=True):
    """Open a stream: of one run, if `run_id` is a string, or else of all runs that match the lists."""

    id: str
    dag_id: str | list[str] = []
    run_id: str | list[str] = []
    result: list[str] = []
    until: Literal["result", "run"] = "result"
    confirm: Literal["push", "success"] = "push"
    task_id: list[str] = []
    state: list[str] = []
    type: list[str] = []
    tag: list[str] = []
    cursor: str | None = None


class Unsubscribe(msgspec.Struct, tag_field="op", tag="unsubscribe", forbid_unknown_fields=True):
    """Close a stream. Frames may still arrive before the `ack`."""

    id: str


class Probe(msgspec.Struct, tag_field="op", tag="ping", forbid_unknown_fields=True):
    """Request an `ack`, to test the connection."""

    id: str


class Answer(msgspec.Struct, tag_field="op", tag="answer", forbid_unknown_fields=True):
    """Answer a request for human input."""

    id: str
    dag_id: str
    run_id: str
    task_id: str
    chosen_options: Annotated[list[str], msgspec.Meta(min_length=1)]
    map_index: Annotated[int, msgspec.Meta(ge=-1, le=999_999_999)] = -1
    iteration: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)] | None = None
    params_input: dict[str, Any] = {}
    asked_at: str | None = None


ClientMessage: TypeAlias = Subscribe | Unsubscribe | Probe | Answer | Introduction

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


class _MessageId(msgspec.Struct):
    """The part of an invalid message that the `error` frame needs."""

    id: str = ""


def parse_message(text: str | bytes) -> ClientMessage:
    """Return the decoded message.

    Raises:
        BadRequest: The message is invalid.
    """
    try:
        return _decoder.decode(text)
    except INVALID_JSON as error:
        raise BadRequest(
            f"Invalid message: {error}. Send JSON such as"
            ' {"op":"subscribe","id":"a","dag_id":"d","run_id":"r"}, {"op":"unsubscribe","id":"a"} or'
            ' {"op":"ping","id":"p"}'
        ) from None


def read_message_id(text: str | bytes) -> str:
    """Return the `id` of an invalid message, or an empty string."""
    try:
        return msgspec.json.decode(text, type=_MessageId).id
    except INVALID_JSON:
        return ""


def parse_run_stream(message: Subscribe, run_id: str) -> tuple[RunKey, WatchOptions]:
    """Return run and options of a stream of one run.

    Raises:
        BadParameter: The message has members for streams of many runs.
    """
    if not isinstance(message.dag_id, str):
        raise BadParameter("`dag_id` must be a string if `run_id` is a string")
    if message.task_id or message.state or message.type or message.tag:
        raise BadParameter(
            "`task_id`, `state`, `type` and `tag` are for streams of many runs; omit them, or make `run_id` a list"
        )
    options = WatchOptions(tuple(dict.fromkeys(message.result)), message.until, message.confirm)
    return RunKey(message.dag_id, run_id), options


def collect_filter_values(message: Subscribe) -> dict[str, list[str]]:
    """Return the arguments of `build_filter` for a stream of many runs.

    Raises:
        BadParameter: The message has members for a stream of one run.
    """
    if message.result or message.until != "result" or message.confirm != "push":
        raise BadParameter(
            "`result`, `until` and `confirm` are for a stream of one run; make `run_id` a string, or omit them"
        )
    dag_ids = [message.dag_id] if isinstance(message.dag_id, str) else message.dag_id
    assert not isinstance(message.run_id, str), "a stream of one run"
    return {
        "dag_id": dag_ids,
        "run_id": message.run_id,
        "task_id": message.task_id,
        "state": message.state,
        "type": message.type,
        "tag": message.tag,
    }
