"""Both Python clients behind one interface for tests of asyncio: the one that blocks runs in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stream_server.client import AsyncClient, Client

DEADLINE = 15.0
"""Seconds within which a frame that is due must arrive."""


class DrivenClient:
    """A client, and its streams and runs."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client: Any = client
        self._blocks = isinstance(client, Client)

    async def call(self, method: str, *arguments: Any, on: Any = None, **options: Any) -> Any:
        """Call a method of the client, or of a stream or a run, and return what it returns."""
        function = getattr(self.client if on is None else on, method)
        called = asyncio.to_thread(function, *arguments, **options) if self._blocks else function(*arguments, **options)
        return await asyncio.wait_for(called, DEADLINE)

    async def next(self, stream: Any) -> Any:
        """Return the next frame of a stream; `None` at its end."""
        one = asyncio.to_thread(next, stream, None) if self._blocks else anext(stream, None)
        return await asyncio.wait_for(one, DEADLINE)

    async def until(self, stream: Any, kind: type) -> list[Any]:
        """Return frames up to and including the first one of a class."""
        frames = [await self.next(stream)]
        while not isinstance(frames[-1], kind):
            assert frames[-1] is not None, f"the stream ended without {kind.__name__}: {frames}"
            frames.append(await self.next(stream))
        return frames

    async def rest(self, stream: Any) -> list[Any]:
        """Return all frames up to the end."""
        frames = []
        while (frame := await self.next(stream)) is not None:
            frames.append(frame)
        return frames


@asynccontextmanager
async def python_client(kind: str, url: str, **options: Any) -> AsyncIterator[DrivenClient]:
    """Open a client; `kind` is `sync` or `async`."""
    client = Client(url, **options) if kind == "sync" else AsyncClient(url, **options)
    driven = DrivenClient(client)
    try:
        yield driven
    finally:
        await driven.call("close")


def names(frames: list[Any]) -> list[str]:
    """Return the class names of frames."""
    return [type(frame).__name__ for frame in frames]
