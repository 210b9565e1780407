from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from stream_server.auth.airflow_api import AirflowApi
from stream_server.auth.airflow_bodies import RunPage
from stream_server.errors import AirflowNotResponding
from support.waiting import eventually_async

BODY = b'{"dag_runs": []}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class ClosingServer:
    """Answers the first request of a connection, and closes it at the second, as if it had been idle for too long."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.open_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        with suppress(asyncio.IncompleteReadError):
            await self._read_head(reader)
            writer.write(RESPONSE)
            await self._read_head(reader)
        writer.close()
        await writer.wait_closed()
        self.open_connections -= 1

    async def _read_head(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.decode().partition(" ")[0])


@pytest.fixture
async def server() -> ClosingServer:
    return ClosingServer()


@pytest.fixture
async def api(server: ClosingServer) -> AsyncIterator[AirflowApi]:
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with AirflowApi.open(f"http://127.0.0.1:{port}", "token") as api:
            yield api
        await eventually_async(lambda: not server.open_connections)


async def test_a_question_is_repeated_if_its_connection_was_closed(api: AirflowApi, server: ClosingServer) -> None:
    for _ in range(2):
        assert (await api.get(RunPage, "/api/v2/dags/~/dagRuns", 5)).status == 200
    assert server.requests == ["GET"] * 3


async def test_a_trigger_is_not_repeated(api: AirflowApi, server: ClosingServer) -> None:
    await api.get(RunPage, "/api/v2/dags/~/dagRuns", 5)
    with pytest.raises(AirflowNotResponding, match="may have been created"):
        await api.trigger_run("chat", {})
    assert server.requests == ["GET", "POST"]
