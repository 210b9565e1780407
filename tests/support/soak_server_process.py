"""The servers of a soak of clients, as child processes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec

from stream_server.cli.demo.ports import LOOPBACK, find_free_port
from stream_server.cli.demo.processes import ChildProcess, wait_until
from stream_server.cli.demo.progress import SilentReporter
from stream_server.cli.demo.server import server_environment
from support.soak_server import ServerState

REPOSITORY = Path(__file__).resolve().parents[2]

PING_SECONDS = 2.0
"""Connections of vanished clients are aborted after three times this."""

MAX_QUEUED_BYTES = 16 * 1024
"""A small limit, so that slow clients exceed it."""


class SoakServerProcess:
    """A server as a child process."""

    def __init__(self, name: str, logs: Path, database_url: str) -> None:
        self.port = find_free_port()
        settings = {
            "STREAM_SERVER_DATABASE_URL": database_url,
            "STREAM_SERVER_PORT": str(self.port),
            "STREAM_SERVER_PING_INTERVAL": f"{PING_SECONDS}s",
            "STREAM_SERVER_MAX_QUEUED_BYTES": str(MAX_QUEUED_BYTES),
            "STREAM_SERVER_GRACE_PERIOD": "2s",
            "PYTHONPATH": str(REPOSITORY / "tests"),
        }
        command = [sys.executable, "-m", "support.soak_server"]
        self.child = ChildProcess(
            name, command, log=logs / f"{name}.log", environment={**server_environment(), **settings}
        )

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.child.start()
        wait_until(self._ready, within=30, waiting_for=self.child, progress=SilentReporter())

    async def read_state(self, *, thorough: bool = False) -> ServerState:
        """Return how many streams, tasks, connections and objects it has."""
        async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{self.port}", timeout=30) as client:
            answer = await client.get("/soak", params={"thorough": str(thorough).lower()})
        return msgspec.json.decode(answer.content, type=ServerState)

    def _ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://{LOOPBACK}:{self.port}/ready", timeout=5, trust_env=False).is_success
        return False
