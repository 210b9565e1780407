"""Draining under a server that is not ours: on SIGTERM and SIGINT, streams end before the server gets the signal.

uvicorn runs the end of the lifespan only after all connections are closed, and streams do not close by themselves. So
while the application runs, our signal handlers stand before the server's.
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
    """Call the server's signal handlers after streams have been drained; call them at once on a second signal.

    Handlers that were set with asyncio's `add_signal_handler` cannot be delayed: they run while the streams end.

    Args:
        drain: Ends all streams within a bounded time.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers in the main thread only.
        yield
        return
    signal_drain = _SignalDrain(asyncio.get_running_loop(), drain)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    replaced = {
        number: handler
        for number, handler in before.items()
        if callable(handler) and handler is not signal.default_int_handler
    }
    for number, handler in replaced.items():
        signal.signal(number, signal_drain.wrap_handler(handler))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class _SignalDrain:
    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Callable[[], Awaitable[None]]) -> None:
        self._loop = loop
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    def wrap_handler(self, handler: Handler) -> Handler:
        """Return a handler that drains, and then calls the given one."""

        def handle(number: int, frame: FrameType | None) -> None:
            # A signal handler runs between any two bytecodes, where tasks must not be created.
            self._loop.call_soon_threadsafe(self._start_drain, lambda: handler(number, frame))

        return handle

    def _start_drain(self, call_handler: Callable[[], None]) -> None:
        if self._draining is not None:
            call_handler()
            return
        self._draining = asyncio.create_task(self._drain_then(call_handler), name="drain")

    async def _drain_then(self, call_handler: Callable[[], None]) -> None:
        try:
            await self._drain()
        except Exception:
            log.exception("Draining the streams failed")
        finally:
            call_handler()
