"""AsyncAPI 3.0 document of all streams and their frames. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

import msgspec

from stream_server.http.docs.openapi import DAG_FIREHOSE_PATH, FIREHOSE_PATH, INFO, RUN_PATH
from stream_server.http.docs.parameters import QUERY_PARAMETERS, build_query_schema, describe_path_variables
from stream_server.http.endpoints.firehose import STREAM_PARAMETERS as FIREHOSE_QUERY
from stream_server.http.endpoints.multiplex_messages import Answer, ClientMessage, Probe, Subscribe, Unsubscribe
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.http.params import STREAM_PARAMETERS
from stream_server.http.websocket_auth import Introduction
from stream_server.protocol import examples
from stream_server.protocol.frames import (
    Ack,
    AuthExpiring,
    Close,
    End,
    Failure,
    Ping,
    Refusal,
    Reset,
    Result,
    Resumed,
    RunTransition,
    Snapshot,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import AnyOutputFrame
from stream_server.protocol.schema import (
    FRAME_TYPES,
    Json,
    build_frame_schemas,
    build_schemas,
    description_of,
    reference_to,
    tag_of,
)

OUTPUT_FRAMES = get_args(AnyOutputFrame)
CONNECTION_FRAMES = (Resumed, Reset, Ping, Close)
TASK_FRAMES = (TaskTransition, RunTransition, *OUTPUT_FRAMES, Input, InputAnswered)
RUN_FRAMES = (Snapshot, Waiting, *TASK_FRAMES, Result, Failure, End, *CONNECTION_FRAMES)
WEBSOCKET_FRAMES = (*RUN_FRAMES, AuthExpiring, Ack, Refusal)
FIREHOSE_FRAMES = (*TASK_FRAMES, *CONNECTION_FRAMES)

CLIENT_MESSAGES: tuple[type[msgspec.Struct], ...] = get_args(ClientMessage)
"""Messages from a client on the multiplexed WebSocket."""

CLIENT_MESSAGE_EXAMPLES: Mapping[type[msgspec.Struct], Json] = {
    Subscribe: {"op": "subscribe", "id": "a", "dag_id": examples.DAG_ID, "run_id": examples.RUN_ID},
    Unsubscribe: {"op": "unsubscribe", "id": "a"},
    Probe: {"op": "ping", "id": "p"},
    Answer: {
        "op": "answer",
        "id": "q",
        "dag_id": examples.DAG_ID,
        "run_id": examples.RUN_ID,
        "task_id": "approve",
        "chosen_options": ["Approve"],
    },
    Introduction: {"op": "auth", "token": "eyJhbGciOiJIUzUxMiJ9.e30.c2ln"},
}

RUN_STREAM_PARAMETERS = STREAM_PARAMETERS | {"ticket"}
FIREHOSE_PARAMETERS = (*FIREHOSE_QUERY, "ticket")

OVER_HTTP = "Server-sent events, or NDJSON: one JSON object per line."
OVER_WEBSOCKET = "One text message per frame."


def build_asyncapi() -> Json:
    return {
        "asyncapi": "3.0.0",
        "info": {**INFO, "license": {"name": INFO["license"]["name"]}},
        "defaultContentType": "application/json",
        "channels": {
            "run": _build_channel(
                f"{RUN_PATH}/stream",
                "One run: its state, each transition as it commits, its outcome",
                (*WEBSOCKET_FRAMES, Introduction),
                RUN_STREAM_PARAMETERS,
            ),
            "allRuns": _build_channel(
                FIREHOSE_PATH, "All transitions of all runs that match the filter", FIREHOSE_FRAMES
            ),
            "runsOfDag": _build_channel(
                DAG_FIREHOSE_PATH, "All transitions of the runs of one DAG that match the filter", FIREHOSE_FRAMES
            ),
            "manyStreams": _build_channel(
                FIREHOSE_PATH, "Several streams on one connection", (*FRAME_TYPES, *CLIENT_MESSAGES), ("ticket",)
            ),
            "probe": _build_channel(
                PROBE_PATH,
                "Pings for one second, to test how a proxy in front of the server treats streams",
                (Ping,),
                (),
            ),
        },
        "operations": {
            "watchRun": _build_operation("run", OVER_WEBSOCKET, WEBSOCKET_FRAMES),
            "authenticate": {
                **_build_operation("run", "Messages from the client.", (Introduction,)),
                "action": "receive",
            },
            "watchRunOverHttp": _build_operation("run", OVER_HTTP, RUN_FRAMES, RUN_STREAM_PARAMETERS),
            "followAllRuns": _build_operation("allRuns", OVER_HTTP, FIREHOSE_FRAMES, FIREHOSE_PARAMETERS),
            "followRunsOfDag": _build_operation("runsOfDag", OVER_HTTP, FIREHOSE_FRAMES, FIREHOSE_PARAMETERS[1:]),
            "receiveFrames": _build_operation("manyStreams", OVER_WEBSOCKET, FRAME_TYPES),
            "subscribe": {
                **_build_operation("manyStreams", "Messages from the client.", CLIENT_MESSAGES),
                "action": "receive",
            },
            "receivePings": _build_operation("probe", OVER_WEBSOCKET, (Ping,)),
            "receivePingsOverHttp": _build_operation("probe", "Server-sent events.", (Ping,), ()),
        },
        "components": {"schemas": _build_schemas(), "messages": _build_messages()},
    }


def _build_schemas() -> Json:
    references = "#/components/schemas/{name}"
    descriptions = {name: text for name, (_, text) in QUERY_PARAMETERS.items()} | {
        "id": "ID that the client chooses.",
        "chosen_options": "One of the options, or several if the request permits it.",
        "params_input": "JSON value by field of the form.",
        "asked_at": "`asked_at` of the request. The answer is refused if the task has asked again.",
        "op": "The operation.",
    }
    found = {**build_frame_schemas(references), **build_schemas(CLIENT_MESSAGES, references, descriptions)}
    # AsyncAPI's discriminator differs from OpenAPI's (AsyncAPI 3.0, Schema Object); each message has its own schema.
    del found["Frame"]
    return found


def _build_messages() -> Json:
    shown = examples.frame_examples(examples.FRAMES)
    frames = {kind.__name__: _build_message(kind, shown[tag_of(kind)]) for kind in FRAME_TYPES}
    return {
        **frames,
        **{kind.__name__: _build_message(kind, [CLIENT_MESSAGE_EXAMPLES[kind]]) for kind in CLIENT_MESSAGES},
    }


def _build_message(kind: type[msgspec.Struct], shown: Iterable[Any]) -> Json:
    return {
        "name": tag_of(kind),
        "title": kind.__name__,
        "summary": description_of(kind),
        "payload": reference_to(kind),
        "examples": [{"payload": one} for one in shown],
    }


def _build_channel(
    address: str, title: str, kinds: Iterable[type[msgspec.Struct]], upgrade: Collection[str] | None = None
) -> Json:
    """Return a channel.

    Args:
        address: Path template.
        title: What the channel carries.
        kinds: Messages in both directions.
        upgrade: Query parameters of the WebSocket handshake; `None` if the channel has no WebSocket.
    """
    found = {
        "address": address,
        "title": title,
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds},
        "parameters": {name: {"description": text} for name, text in describe_path_variables(address).items()},
    }
    if upgrade is None:
        return found
    return {
        **found,
        "bindings": {"ws": {"method": "GET", "query": build_query_schema(upgrade), "bindingVersion": "0.1.0"}},
    }


def _build_operation(
    channel: str, summary: str, kinds: Iterable[type[msgspec.Struct]], names: Collection[str] | None = None
) -> Json:
    """Return the operation in which the server sends messages on a channel.

    Args:
        channel: Key of the channel.
        summary: How messages are framed.
        kinds: Messages.
        names: Query parameters over HTTP; `None` over WebSocket.
    """
    found = {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{kind.__name__}"} for kind in kinds],
    }
    if names is None:
        return found
    return {
        **found,
        "bindings": {"http": {"method": "GET", "query": build_query_schema(names), "bindingVersion": "0.3.0"}},
    }
