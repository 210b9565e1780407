from __future__ import annotations

import asyncio
import logging
import socket

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from stream_server.server.parse_turns import ParseTurns
from stream_server.server.websocket_connection import WebSocketConnection
from support.waiting import eventually_async

HEADERS = [
    (b"host", b"localhost"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]


async def test_a_handshake_on_a_connection_that_closes_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        connection.transport.abort()
        await send({"type": "websocket.accept"})

    loop, state = asyncio.get_running_loop(), ServerState()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    config = Config(app, log_config=None, ws="websockets-sansio")
    config.load()
    connection = WebSocketConnection(config, state, {})
    with theirs, caplog.at_level(logging.INFO):
        await loop.create_connection(lambda: connection, sock=ours)
        connection.parse_turns = ParseTurns(loop)
        connection.start_handshake(b"/", HEADERS)
        await eventually_async(lambda: not state.tasks and not state.connections)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
