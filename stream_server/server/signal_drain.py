"""Draining under a server of somebody else's choice: on SIGTERM and SIGINT streams end first, and then it is told.

uvicorn runs the end of the lifespan only after it has waited for all connections, which would be for ever. So the
handlers that it has set are put behind ours for as long as the application lives.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler: TypeAlias = Callable[[int, "FrameType | None"], Any]


@contextmanager
def drain_on_signals(drain: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Have the server's handlers of signals called when streams have been drained; a second signal comes there at once.

    What handles signals in another way, as asyncio's `add_signal_handler` does, is told at the same time as we are.

    Args:
        drain: Ends all streams, in a time that is bounded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    farewell = _SignalDrain(asyncio.get_running_loop(), drain)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    theirs = {
        number: one for number, one in handlers.items() if callable(one) and one is not signal.default_int_handler
    }
    for number, handler in theirs.items():
        signal.signal(number, farewell.wrap_handler(handler))
    try:
        yield
    finally:
        for number, handler in theirs.items():
            signal.signal(number, handler)


class _SignalDrain:
    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Callable[[], Awaitable[None]]) -> None:
        self._loop = loop
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    def wrap_handler(self, handler: Handler) -> Handler:
        """Return a handler that drains, and then calls another."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._loop.call_soon_threadsafe(self._start_drain, lambda: handler(number, frame))

        return handle

    def _start_drain(self, go: Callable[[], None]) -> None:
        if self._draining is not None:
            go()
            return
        self._draining = asyncio.create_task(self._drain_then(go), name="drain")

    async def _drain_then(self, go: Callable[[], None]) -> None:
        try:
            await self._drain()
        except Exception:
            log.exception("Streams could not be drained")
        finally:
            go()
