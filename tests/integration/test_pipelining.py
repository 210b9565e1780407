"""Requests that come behind one whose stream goes on (RFC 9112 section 9.3.2): answered in order, and by themselves."""

from __future__ import annotations

import asyncio

import pytest

from stream_server.protocols import TAKEN
from stream_server.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.raw import raw, request
from support.server import RunningServer
from support.streams import DEADLINE, stream_path

BEHIND = request("/health", "Connection: close")


@pytest.mark.parametrize("early", [0, 1, 24, len(BEHIND)])
async def test_a_request_behind_a_stream_is_answered_after_it(
    early: int, airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    stream = request(stream_path(run), "Accept: text/event-stream")
    async with raw(server.url) as client:
        await client.say(stream + BEHIND[:early])
        begun = await asyncio.wait_for(client.reader.readuntil(b"event: snapshot"), DEADLINE)
        await airflow.answer(run)
        streamed = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), DEADLINE)
        await client.say(BEHIND[early:])
        answer = await client.answer()

    assert begun.startswith(b"HTTP/1.1 200")
    assert begun.count(b"HTTP/1.1") == 1
    assert b"event: end" in streamed
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    assert TAKEN == {"method": "GET"}, "what is shared by all connections stays as it is"
