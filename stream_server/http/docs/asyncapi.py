"""The description of all streams and their frames, as AsyncAPI 3.0 has it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

import msgspec

from stream_server.http.docs.openapi import ALL, INFO, OF_DAG, RUN
from stream_server.http.docs.parameters import QUERY, query, variables
from stream_server.http.endpoints import firehose as many_runs
from stream_server.http.endpoints.multiplex_messages import Operation, Probe, Subscribe, Unsubscribe
from stream_server.http.endpoints.probe import PROBE
from stream_server.http.params import STREAM
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
)
from stream_server.protocol.schema import (
    FRAME_TYPES,
    Json,
    build_frame_schemas,
    build_schemas,
    description_of,
    reference_to,
    tag_of,
)

OF_CONNECTION = (Resumed, Reset, Ping, Close)
OF_RUN = (Snapshot, TaskTransition, RunTransition, Result, Failure, End, *OF_CONNECTION)
OF_WEBSOCKET = (*OF_RUN, AuthExpiring, Ack, Refusal)
OF_MANY_RUNS = (TaskTransition, RunTransition, *OF_CONNECTION)

OPERATIONS: tuple[type[msgspec.Struct], ...] = get_args(Operation)
"""What a client may say on a connection of many streams."""

OPERATION_EXAMPLES: Mapping[type[msgspec.Struct], Json] = {
    Subscribe: {"op": "subscribe", "id": "a", "dag_id": examples.DAG_ID, "run_id": examples.RUN_ID},
    Unsubscribe: {"op": "unsubscribe", "id": "a"},
    Probe: {"op": "ping", "id": "p"},
    Introduction: {"op": "auth", "token": "eyJhbGciOiJIUzUxMiJ9.e30.c2ln"},
}

OF_ONE = STREAM | {"ticket"}
FILTER = (*many_runs.PARAMETERS, "cursor", "ticket")

OVER_HTTP = "As server-sent events, or as lines of JSON."
OVER_WEBSOCKET = "As one text message for each frame."


def document() -> Json:
    """Return the description."""
    return {
        "asyncapi": "3.0.0",
        "info": {**INFO, "license": {"name": INFO["license"]["name"]}},
        "defaultContentType": "application/json",
        "channels": {
            "run": _channel(
                f"{RUN}/stream",
                "A run: its state, each transition as it commits, its outcome",
                (*OF_WEBSOCKET, Introduction),
                OF_ONE,
            ),
            "allRuns": _channel(ALL, "Every transition of all runs that the filter lets through", OF_MANY_RUNS),
            "runsOfDag": _channel(OF_DAG, "The same, for the runs of one DAG", OF_MANY_RUNS),
            "manyStreams": _channel(ALL, "Many streams on one connection", (*FRAME_TYPES, *OPERATIONS), ("ticket",)),
            "probe": _channel(PROBE, "A second of pings, to see what a proxy in front does to streams", (Ping,), ()),
        },
        "operations": {
            "watchRun": _operation("run", OVER_WEBSOCKET, OF_WEBSOCKET),
            "sayWhoYouAre": {**_operation("run", "What the client says.", (Introduction,)), "action": "receive"},
            "watchRunOverHttp": _operation("run", OVER_HTTP, OF_RUN, OF_ONE),
            "followAllRuns": _operation("allRuns", OVER_HTTP, OF_MANY_RUNS, FILTER),
            "followRunsOfDag": _operation("runsOfDag", OVER_HTTP, OF_MANY_RUNS, FILTER[1:]),
            "hearStreams": _operation("manyStreams", OVER_WEBSOCKET, FRAME_TYPES),
            "askForStreams": {**_operation("manyStreams", "What the client says.", OPERATIONS), "action": "receive"},
            "hearPings": _operation("probe", OVER_WEBSOCKET, (Ping,)),
            "hearPingsOverHttp": _operation("probe", "As server-sent events.", (Ping,), ()),
        },
        "components": {"schemas": _schemas(), "messages": _messages()},
    }


def _schemas() -> Json:
    places = "#/components/schemas/{name}"
    words = {name: text for name, (_, text) in QUERY.items()} | {"id": "What the client calls it."}
    found = {**build_frame_schemas(places), **build_schemas(OPERATIONS, places, words)}
    # A discriminator is another thing here (AsyncAPI 3.0, Schema Object), and each message has its own schema.
    del found["Frame"]
    return found


def _messages() -> Json:
    shown = examples.frame_examples(examples.FRAMES)
    frames = {kind.__name__: _message(kind, shown[tag_of(kind)]) for kind in FRAME_TYPES}
    return {**frames, **{kind.__name__: _message(kind, [OPERATION_EXAMPLES[kind]]) for kind in OPERATIONS}}


def _message(kind: type[msgspec.Struct], shown: Iterable[Any]) -> Json:
    return {
        "name": tag_of(kind),
        "title": kind.__name__,
        "summary": description_of(kind),
        "payload": reference_to(kind),
        "examples": [{"payload": one} for one in shown],
    }


def _channel(
    address: str, title: str, kinds: Iterable[type[msgspec.Struct]], upgrade: Collection[str] | None = None
) -> Json:
    """Return a channel.

    Args:
        address: Its path.
        title: What it is.
        kinds: What is said there, by whomever.
        upgrade: Parameters of the query of a WebSocket's handshake; `None` where there is no WebSocket.
    """
    found = {
        "address": address,
        "title": title,
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds},
        "parameters": {name: {"description": text} for name, text in variables(address).items()},
    }
    if upgrade is None:
        return found
    return {**found, "bindings": {"ws": {"method": "GET", "query": query(upgrade), "bindingVersion": "0.1.0"}}}


def _operation(
    channel: str, summary: str, kinds: Iterable[type[msgspec.Struct]], names: Collection[str] | None = None
) -> Json:
    """Return what the server says on a channel.

    Args:
        channel: The channel.
        summary: How it is said.
        kinds: What it says.
        names: Parameters of the query, over HTTP; `None` over WebSocket.
    """
    found = {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{kind.__name__}"} for kind in kinds],
    }
    if names is None:
        return found
    return {**found, "bindings": {"http": {"method": "GET", "query": query(names), "bindingVersion": "0.3.0"}}}
