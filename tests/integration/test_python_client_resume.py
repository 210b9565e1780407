"""The Python clients resume inside: they lose and double nothing while connections break and servers drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from stream_server.client.frames import Chunk, End, Reset, RunTransition, Snapshot, StreamFrame, TaskTransition
from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run
from support.python_clients import DrivenClient, python_client
from support.server import RunningServer, running_server
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

CHUNKS = 40
CHUNKS_PER_CUT = 8


def port_of(server: RunningServer) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


async def collect(client: DrivenClient, stream: Any, frames: list[StreamFrame]) -> None:
    while (frame := await client.next(stream)) is not None:
        frames.append(frame)


def has_accepted(proxy: TcpProxy, number: int) -> Callable[[], bool]:
    return lambda: proxy.accepted >= number


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_cuts_and_a_drained_server_lose_and_double_nothing(
    kind: str, settings: Callable[..., Settings], stub: AirflowStub, airflow: AirflowSql
) -> None:
    configured = settings(airflow_url=stub.url, auth="none")
    async with AsyncExitStack() as stack:
        first_server = await stack.enter_async_context(AsyncExitStack())
        first = await first_server.enter_async_context(running_server(configured))
        second = await stack.enter_async_context(running_server(configured))
        await eventually_async(lambda: first.hub.is_live and second.hub.is_live, what="both tails have started")
        proxy = await stack.enter_async_context(TcpProxy.listen(port_of(first)))
        client = await stack.enter_async_context(python_client(kind, f"http://127.0.0.1:{proxy.port}", token="t"))
        frames: list[StreamFrame] = []
        stream = client.client.run("chat", until="run")
        reading = asyncio.create_task(collect(client, stream, frames))
        await eventually_async(lambda: frames and stream.cursor is not None, what="the first frame has a cursor")
        key = RunKey("chat", stream.run.run_id)
        before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
        await airflow.start_task(key, "answer")
        for index in range(CHUNKS):
            await airflow.emit_output(key, "answer", index, str(index))
            if index % CHUNKS_PER_CUT == CHUNKS_PER_CUT - 1:
                # A server may still count the watcher of a connection that was cut.
                await eventually_async(has_accepted(proxy, 1 + index // CHUNKS_PER_CUT), what="it has connected again")
                await eventually_async(lambda: second.watcher_count(key) + first.watcher_count(key), what="it is back")
                await proxy.cut_connections()
            if index == CHUNKS // 2:
                await proxy.switch_to(port_of(second), cut=False)
                await first_server.aclose()
        await complete_run(airflow, key)
        await reading
        rows = await airflow.connection.fetch(
            "SELECT id FROM stream_server.journal WHERE id > $1 AND kind IN ('task', 'run') ORDER BY id", before
        )
    assert [frame.value for frame in frames if isinstance(frame, Chunk)] == [str(index) for index in range(CHUNKS)]
    seqs = [frame.seq for frame in frames if isinstance(frame, (TaskTransition, RunTransition))]
    assert len(seqs) == len(set(seqs))
    assert [seq for seq in seqs if seq > before] == [row["id"] for row in rows]
    assert len([frame for frame in frames if isinstance(frame, (Snapshot, Reset))]) == 1
    assert isinstance(frames[-1], End)
    assert proxy.accepted > CHUNKS // CHUNKS_PER_CUT
