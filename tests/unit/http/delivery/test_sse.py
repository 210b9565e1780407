"""Frames as server-sent events."""

from __future__ import annotations

import pytest
from sse_starlette import ServerSentEvent

from stream_server.http.delivery.sse import encode_event
from stream_server.protocol.examples import FRAMES, STREAM
from stream_server.protocol.wire import Wire

WIRES = (*STREAM, *FRAMES)


@pytest.mark.parametrize("wire", WIRES, ids=[f"{number}-{wire.type}" for number, wire in enumerate(WIRES)])
def test_an_event_is_that_of_sse_starlette(wire: Wire) -> None:
    event_id = None if wire.token is None else str(wire.token)
    event = ServerSentEvent(wire.json.decode(), event=wire.type, id=event_id, sep="\n")
    assert encode_event(wire) == event.encode()
