"""Waiting for frames in requests that have no writer: they build one response from the frames, or drop them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
from starlette.types import Receive

from stream_server.http.delivery.streaming_body import wait_for_disconnect
from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import Wire


class DueFrames:
    """The frames of a subscription, as they become due.

    Args:
        subscription: Source of the frames.
        gone: Ends when the client has disconnected.
    """

    def __init__(self, subscription: Subscription, gone: asyncio.Task[None]) -> None:
        self._subscription = subscription
        self._gone = gone
        self._due = due = asyncio.Event()
        subscription.on_due(due.set)
        gone.add_done_callback(lambda _: due.set())

    @property
    def is_client_gone(self) -> bool:
        return self._gone.done()

    @property
    def have_ended(self) -> bool:
        """Whether all frames were taken and none can follow, or the client has disconnected."""
        return self._gone.done() or self._subscription.is_finished

    async def take(self, seconds: float | None = None) -> Sequence[Wire] | None:
        """Wait for due frames, and take them all; `None` if none becomes due in so many seconds.

        There may be none when the client has disconnected.
        """
        with anyio.move_on_after(seconds):
            await self._due.wait()
        if not self._due.is_set():
            return None
        self._due.clear()
        return self._subscription.take()


@contextmanager
def watch_due_frames(subscription: Subscription, receive: Receive) -> Iterator[DueFrames]:
    """Watch for frames, and for the client's disconnection.

    Args:
        subscription: Source of the frames.
        receive: Of the request, whose body has been read.
    """
    gone = asyncio.create_task(wait_for_disconnect(receive), name="disconnect")
    try:
        yield DueFrames(subscription, gone)
    finally:
        gone.cancel()
