"""What clients say on the WebSocket of many streams: `{"op": "subscribe", "id": "a", …}`."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadParameter, BadRequest
from stream_server.http.websocket_auth import Introduction


class Subscribe(msgspec.Struct, tag_field="op", tag="subscribe", forbid_unknown_fields=True):
    """Begin a stream: of one run, where `run_id` is a name, or of all runs that the lists let through."""

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
    """End a stream. What was on its way may still come, before the answer."""

    id: str


class Probe(msgspec.Struct, tag_field="op", tag="ping", forbid_unknown_fields=True):
    """Ask whether the server is there."""

    id: str


ClientMessage: TypeAlias = Subscribe | Unsubscribe | Probe | Introduction

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


class _MessageId(msgspec.Struct):
    """As much as an answer needs of what can't be understood."""

    id: str = ""


def parse_message(text: str | bytes) -> ClientMessage:
    """Return what a client says.

    Raises:
        BadRequest: It is nothing that can be done.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(
            f"Not understood: {error}. Send JSON such as"
            ' {"op":"subscribe","id":"a","dag_id":"d","run_id":"r"}, {"op":"unsubscribe","id":"a"} or'
            ' {"op":"ping","id":"p"}'
        ) from None


def read_message_id(text: str | bytes) -> str:
    """Return the `id` of what can't be done, as far as it can be read; else nothing."""
    try:
        return msgspec.json.decode(text, type=_MessageId).id
    except (msgspec.DecodeError, RecursionError):
        return ""


def parse_run_stream(operation: Subscribe, run_id: str) -> tuple[RunKey, WatchOptions]:
    """Return the run that a stream is of, and what is asked of it.

    Raises:
        BadParameter: Something is said that is for streams of many runs.
    """
    if not isinstance(operation.dag_id, str):
        raise BadParameter("dag_id must be the name of one DAG, where run_id is that of one run")
    if operation.task_id or operation.state or operation.type or operation.tag:
        raise BadParameter("task_id, state, type and tag choose among many runs; leave them out, or make run_id a list")
    question = WatchOptions(tuple(dict.fromkeys(operation.result)), operation.until, operation.confirm)
    return RunKey(operation.dag_id, run_id), question


def collect_filter_values(operation: Subscribe) -> dict[str, list[str]]:
    """Return what a stream of many runs lets through, as `build_filter` wants it.

    Raises:
        BadParameter: Something is said that is for a stream of one run.
    """
    if operation.result or operation.until != "result" or operation.confirm != "push":
        raise BadParameter("result, until and confirm are for a stream of one run; name it by run_id, as a text")
    dag_ids = [operation.dag_id] if isinstance(operation.dag_id, str) else operation.dag_id
    assert not isinstance(operation.run_id, str), "that is a stream of one run"
    return {
        "dag_id": dag_ids,
        "run_id": operation.run_id,
        "task_id": operation.task_id,
        "state": operation.state,
        "type": operation.type,
        "tag": operation.tag,
    }
