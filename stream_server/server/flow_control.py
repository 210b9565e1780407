"""Whether a connection can be written to, in as little memory as can be: each connection has one of these."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class ResumeEvent:
    """An `asyncio.Event` that takes next to no memory while nobody waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = True
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """Tell whether it is open."""
        return self._is_set

    def set(self) -> None:
        """Open it."""
        self._is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        """Shut it."""
        self._is_set = False

    async def wait(self) -> bool:
        """Wait until it is open."""
        while not self._is_set:
            self._event = self._event or asyncio.Event()
            await self._event.wait()
        return True


class SmallFlowControl(FlowControl):
    """uvicorn's, with a gate."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._is_writable_event = ResumeEvent()  # type: ignore[assignment]
