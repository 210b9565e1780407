"""Small objects that replace parts of uvicorn's connections, to save memory or to capture what they write."""

from __future__ import annotations

import asyncio
from typing import Any

from typing_extensions import override


class NullTimer(asyncio.TimerHandle):
    """Replaces a timer that is not set."""

    def __init__(self) -> None:
        pass

    @override
    def cancel(self) -> None:
        pass


class NullQueue:
    """Replaces the queue of a WebSocket whose application has returned."""

    def put_nowait(self, message: object) -> None:
        pass


NULL_TIMER, NULL_QUEUE = NullTimer(), NullQueue()


class CapturingTransport:
    """Replaces the transport of a request while the head of its response is captured."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class SmallQueue(list[Any]):
    """Replaces uvicorn's `deque` of pipelined requests, which takes 600 bytes while it is empty."""

    __slots__ = ()

    def appendleft(self, request: object) -> None:
        """Add a request. uvicorn adds on the left, and takes with `pop` on the right."""
        self.insert(0, request)
