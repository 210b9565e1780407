"""Runs the built TypeScript client in a Node process."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from support import node
from support.locks import exclusive_lock

WEB = Path(__file__).resolve().parents[2] / "web"

LINE_SECONDS = 20.0
"""Longer than the longest backoff of the client, and than the start of Node."""

Line = dict[str, Any]


class TypeScriptClient:
    """A client that follows a run and prints its frames."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.frames: list[Line] = []
        self.bookmark: Line | None = None
        """Where to resume the stream, as a page would store it."""

    async def until(self, condition: Callable[[Line], bool]) -> Line:
        """Return the next line for which the condition is true."""
        assert self._process.stdout is not None
        while True:
            text = await asyncio.wait_for(self._process.stdout.readline(), LINE_SECONDS)
            assert text, f"the client has exited; its frames: {self.frames}"
            line: Line = json.loads(text)
            if "frame" in line:
                self.frames.append(line["frame"])
                self.bookmark = line["bookmark"]
            if condition(line):
                return line

    async def until_frame(self, kind: str, **members: object) -> None:
        """Wait for a frame of a type."""
        wanted = {"type": kind, **members}
        await self.until(lambda line: wanted.items() <= line.get("frame", {}).items())

    async def end(self) -> Line:
        """Return the last line: the outcome, the run, the view."""
        return await self.until(lambda line: "outcome" in line)

    def kill(self) -> None:
        """Kill the process; it prints nothing more."""
        self._process.kill()


@asynccontextmanager
async def run_typescript_client(**arguments: object) -> AsyncIterator[TypeScriptClient]:
    """Run a client until the end of the context.

    Args:
        arguments: Those of `web/client/test/follow.js`.
    """
    process = await asyncio.create_subprocess_exec(
        *(node.node(), str(build_client() / "test" / "follow.js"), json.dumps(arguments)),
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        yield TypeScriptClient(process)
    finally:
        if process.returncode is None:
            process.kill()
        # npm waits for each process that holds its pipe open.
        await asyncio.wait_for(process.wait(), LINE_SECONDS)


@cache
def build_client() -> Path:
    """Build the client if its sources are newer, and return its directory."""
    node.install(WEB)
    client, built = WEB / "client", WEB / "client" / "dist" / "index.js"
    sources = [WEB / "package-lock.json", *client.glob("*.json"), *client.rglob("src/**/*")]
    with exclusive_lock("typescript"):
        # A process of another tier may be reading the build.
        if not built.exists() or built.stat().st_mtime <= max(source.stat().st_mtime for source in sources):
            subprocess.run([*node.npm(), "run", "--silent", "build", "--workspace", "client"], cwd=WEB, check=True)
    return client
