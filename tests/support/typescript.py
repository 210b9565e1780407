"""The TypeScript client, built, in a Node of its own."""

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

WEB = Path(__file__).resolve().parents[2] / "web"

LINE_SECONDS = 20.0
"""Longer than the longest wait of a client, and than Node takes to start."""

Line = dict[str, Any]


class Following:
    """A client that follows a run, and tells what it sees."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.frames: list[Line] = []
        self.bookmark: Line | None = None
        """Where the stream stands, as a page would keep it."""

    async def until(self, condition: Callable[[Line], bool]) -> Line:
        """Return the first line from here on of which something is true."""
        assert self._process.stdout is not None
        while True:
            text = await asyncio.wait_for(self._process.stdout.readline(), LINE_SECONDS)
            assert text, f"it goes on; it has told {self.frames}"
            line: Line = json.loads(text)
            if "frame" in line:
                self.frames.append(line["frame"])
                self.bookmark = line["bookmark"]
            if condition(line):
                return line

    async def until_frame(self, kind: str, **members: object) -> None:
        """Wait for a frame."""
        wanted = {"type": kind, **members}
        await self.until(lambda line: wanted.items() <= line.get("frame", {}).items())

    async def end(self) -> Line:
        """Return what it says last: the outcome, the run, the view."""
        return await self.until(lambda line: "outcome" in line)

    def kill(self) -> None:
        """Kill it, without a chance to say anything more."""
        self._process.kill()


@asynccontextmanager
async def following(**asked: object) -> AsyncIterator[Following]:
    """Run a client until the end of the context.

    Args:
        asked: What `web/client/test/follow.js` takes.
    """
    process = await asyncio.create_subprocess_exec(
        *(node.node(), str(built_client() / "test" / "follow.js"), json.dumps(asked)),
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        yield Following(process)
    finally:
        if process.returncode is None:
            process.kill()
        # It waits for all who hold its pipe.
        await asyncio.wait_for(process.wait(), LINE_SECONDS)


@cache
def built_client() -> Path:
    """Build the client, and return its directory."""
    node.install(WEB)
    subprocess.run([*node.npm(), "run", "--silent", "build", "--workspace", "client"], cwd=WEB, check=True)
    return WEB / "client"
