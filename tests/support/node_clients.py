"""Third-party clients of `tests/clients` as processes of Node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support import node
from support.streams import Frame

LINE_SECONDS = 20.0
"""Longer than the longest `retry`, and than the start of Node."""


class ClientProcess:
    """A client process that writes a line for each frame."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def next(self) -> Frame:
        """Return the decoded next line that is JSON."""
        assert self._process.stdout is not None
        while True:
            line = await asyncio.wait_for(self._process.stdout.readline(), LINE_SECONDS)
            assert line, "the client stopped before the end of the stream"
            at = line.find(b"{")
            if at >= 0:
                frame: Frame = json.loads(line[at : line.rindex(b"}") + 1])
                return frame

    async def until(self, kind: str) -> list[Frame]:
        frames = [await self.next()]
        while frames[-1]["type"] != kind:
            frames.append(await self.next())
        return frames

    async def rest(self) -> str:
        """Return the rest of its output."""
        stdout, _ = await asyncio.wait_for(self._process.communicate(), LINE_SECONDS)
        assert self._process.returncode == 0
        return stdout.decode()


@asynccontextmanager
async def run_node(*command: str) -> AsyncIterator[ClientProcess]:
    """Run Node until the end of the context."""
    directory = node.installed_clients()
    process = await asyncio.create_subprocess_exec(
        node.node(),
        *command,
        cwd=directory,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield ClientProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
