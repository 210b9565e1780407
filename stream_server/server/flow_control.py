"""Flow control that allocates nothing while a client reads fast enough: every connection has one."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class ResumeEvent:
    """An `asyncio.Event`, set at first, that makes the real event only when a task waits.

    It takes 56 bytes. An `asyncio.Event` takes some 850, most of them for the queue of its waiters.
    """

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = True
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:
        """Wait until the event is set, as `asyncio.Event.wait` does."""
        # A loop: `clear` may follow `set` before the waiting task runs.
        while not self._is_set:
            self._event = self._event or asyncio.Event()
            await self._event.wait()
        return True


class SmallFlowControl(FlowControl):
    """uvicorn's `FlowControl` with a `ResumeEvent`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        # In place of `super().__init__`, which makes an `asyncio.Event`. Sets all that uvicorn's methods read.
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._is_writable_event = ResumeEvent()  # type: ignore[assignment]
