"""A running server with several worker processes."""

from __future__ import annotations

import re
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Any

import httpx
import psutil

from support.streams import DEADLINE
from support.waiting import eventually_answered

START = 60.0
"""Seconds until all workers must serve, on a busy machine."""


class MultiProcessServer:
    """A server with several worker processes."""

    def __init__(self, process: Process, url: str, admin: str | None) -> None:
        self.url = url
        self.admin = admin or url
        self.parent = psutil.Process(process.pid)
        self.process = process
        self.log: list[str] = []

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.parent.children() if child.status() != psutil.STATUS_ZOMBIE]

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())

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
