"""Whether a connection can be written to, in as little memory as can be: each connection has one of these."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class Gate:
    """An `asyncio.Event` that takes next to no memory while nobody waits for it."""

    __slots__ = ("_open", "_opened")

    def __init__(self) -> None:
        self._open = True
        self._opened: asyncio.Event | None = None

    def is_set(self) -> bool:
        """Tell whether it is open."""
        return self._open

    def set(self) -> None:
        """Open it."""
        self._open = True
        if self._opened is not None:
            self._opened.set()
            self._opened = None

    def clear(self) -> None:
        """Shut it."""
        self._open = False

    async def wait(self) -> bool:
        """Wait until it is open."""
        while not self._open:
            self._opened = self._opened or asyncio.Event()
            await self._opened.wait()
        return True


class Flow(FlowControl):
    """uvicorn's, with a gate."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._is_writable_event = Gate()  # type: ignore[assignment]
