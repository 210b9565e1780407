"""The send loop of responses that build their lines from frames while they send them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio

from stream_server.hub.subscription import Subscription
from stream_server.protocol.wire import PING, Wire


async def pump(
    subscription: Subscription,
    *,
    gone: asyncio.Task[None],
    silence: float,
    send: Callable[[Sequence[Wire]], Awaitable[None]],
) -> None:
    """Send due frames until all are sent or the client is gone.

    Args:
        subscription: Source of the frames. Frames that are due together are sent together.
        gone: Ends when the client is gone.
        silence: Seconds without a frame after which a `ping` is sent.
        send: Sends frames, in order. It may wait until the client has read.
    """
    due = asyncio.Event()
    subscription.on_due(due.set)
    gone.add_done_callback(lambda _: due.set())
    while not gone.done() and not subscription.is_finished:
        with anyio.move_on_after(silence):
            await due.wait()
        quiet = not due.is_set()
        due.clear()
        if quiet:
            await send([PING])
        elif wires := subscription.take():
            await send(wires)
