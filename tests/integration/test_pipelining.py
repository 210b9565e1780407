"""Pipelined requests behind an open stream (RFC 9112 section 9.3.2) are answered in order."""

from __future__ import annotations

import asyncio

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.server.stream_connection import DETACHED_SCOPE
from support.airflow_sql import AirflowSql
from support.raw_connection import open_raw, request
from support.server import RunningServer
from support.streams import DEADLINE, stream_path

BEHIND = request("/health", "Connection: close")


@pytest.mark.parametrize("early", [0, 1, 24, len(BEHIND)])
async def test_request_behind_a_stream_is_answered_after_it(
    early: int, airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    stream = request(stream_path(run), "Accept: text/event-stream")
    async with open_raw(server.url) as client:
        await client.send(stream + BEHIND[:early])
        first_response = await asyncio.wait_for(client.reader.readuntil(b"event: snapshot"), DEADLINE)
        await airflow.complete_chain(run)
        streamed = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), DEADLINE)
        await client.send(BEHIND[early:])
        answer = await client.read_response()

    assert first_response.startswith(b"HTTP/1.1 200")
    assert first_response.count(b"HTTP/1.1") == 1
    assert b"event: end" in streamed
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    assert DETACHED_SCOPE == {"method": "GET"}, "the scope shared by all connections is unchanged"


async def test_requests_during_a_stream_are_answered_in_order(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    behind = request("/health") + request("/nowhere", "Connection: close")
    async with open_raw(server.url) as client:
        await client.send(request(stream_path(run), "Accept: text/event-stream"))
        await asyncio.wait_for(client.reader.readuntil(b"event: snapshot"), DEADLINE)
        for start in range(0, len(behind), 7):
            await client.send(behind[start : start + 7])
        await airflow.complete_chain(run)
        streamed = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), DEADLINE)
        first = await asyncio.wait_for(client.reader.readuntil(b'{"status":"ok"}'), DEADLINE)
        second = await client.read_response()

    assert b"HTTP/1.1" not in streamed
    assert first.startswith(b"HTTP/1.1 200")
    assert second.status == 404


async def test_connection_serves_one_stream_after_the_other(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    await airflow.complete_chain(run)
    async with open_raw(server.url) as client:
        for _ in range(3):
            await client.send(request(stream_path(run), "Accept: text/event-stream"))
            streamed = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), DEADLINE)
            assert streamed.startswith(b"HTTP/1.1 200")
            assert b"event: end" in streamed
