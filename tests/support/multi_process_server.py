"""A running server with several worker processes."""

from __future__ import annotations

import re
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import psutil

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.processes import is_alive
from support.streams import DEADLINE, Events, sse
from support.waiting import eventually_answered

START = 60.0
"""Seconds until all workers must serve, on a busy machine."""


class WorkersOfServer:
    """A server with several worker processes, as its clients and its operators see it.

    Args:
        pid: Of the supervisor.
        url: Address of the streams.
        admin: Address for operators; None if it is the same.
    """

    def __init__(self, pid: int, url: str, admin: str | None) -> None:
        self.url = url
        self.admin = admin or url
        self.parent = psutil.Process(pid)

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.parent.children() if is_alive(child)]

    async def is_ready(self) -> bool:
        return bool((await self.get_json("/ready"))["status"] == "ready")

    async def get_json(self, path: str) -> Any:
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=self.admin, timeout=DEADLINE) as client:
                return (await client.get(path)).json()
        return {"status": "down", "problems": []}

    async def wait_until_ready(self) -> None:
        await eventually_answered(self.is_ready, within=START, what="all workers serve")

    async def metric(self, name: str) -> float:
        async with httpx.AsyncClient(base_url=self.admin, timeout=DEADLINE) as client:
            text = (await client.get("/metrics")).text
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)


class MultiProcessServer(WorkersOfServer):
    """A server of one test."""

    def __init__(self, process: Process, url: str, admin: str | None) -> None:
        super().__init__(process.pid, url, admin)
        self.process = process
        self.log: list[str] = []

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())


def connections_of(worker: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port != 0 for one in worker.net_connections("tcp4"))


@asynccontextmanager
async def open_streams(url: str, key: RunKey, clients: int) -> AsyncIterator[list[Events]]:
    """Open many streams, and read the snapshot of each."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(sse(url, key, "?until=run")) for _ in range(clients)]
        for events in opened:
            assert (await events.next())["type"] == "snapshot"
        yield opened


async def read_transitions(airflow: AirflowSql, key: RunKey) -> list[tuple[int, str]]:
    rows = await airflow.connection.fetch(
        "SELECT id, state FROM stream_server.journal WHERE run_id = $1 AND kind IN ('task', 'run') ORDER BY id",
        key.run_id,
    )
    return [tuple(row) for row in rows]
