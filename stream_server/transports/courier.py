"""The courier of an event loop: calls at each client that has something due, or has heard nothing for too long.

A subscription says that something is due; the courier hands it on in the loop's next turn, so that all that becomes due
in one turn goes out in one write, and without a task or a timer for each client.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager

from stream_server.frames import Wire
from stream_server.subscription import Subscription
from stream_server.transports.pump import PING

log = logging.getLogger(__name__)

PINGS = (PING,)

MOST_IN_A_TURN = 500
"""Deliveries after which the event loop does what else there is to do, before it goes on with the others."""

SLOTS = 16
"""Into how many parts the wheel of heartbeats divides the time of silence."""

Joined = MutableMapping[tuple[object, ...], bytes]
"""What several clients get in one write, made once: by way of framing and frames."""


class Delivery(ABC):
    """What brings one client its frames.

    Args:
        subscription: Where they come from.
        courier: Who calls.
    """

    __slots__ = ("_courier", "_subscription", "behind", "over", "queued", "silent", "slot", "spoke_at")

    def __init__(self, subscription: Subscription, courier: Courier) -> None:
        self._subscription = subscription
        self._courier = courier
        self.over: asyncio.Future[bool] = courier.loop.create_future()
        """Done when nothing more can be sent: `True` where all has been, `False` where the client is gone."""

        self.behind = False
        """Whether nothing can be sent: the client must read first, or it is over."""

        self.queued = False
        self.silent = False
        """Whether a `ping` is due, unless something else is."""

        self.spoke_at = 0.0
        self.slot = 0

    @contextmanager
    def attended(self) -> Iterator[asyncio.Future[bool]]:
        """Bring frames until the end of the context."""
        self.begin()
        try:
            yield self.over
        finally:
            self.stop()

    def begin(self) -> None:
        """Bring frames. What is due already is sent at once."""
        self._courier.attend(self)
        self.queued = True
        self.deliver(self._courier.loop.time(), {})
        self._subscription.on_due(self.due)

    def stop(self) -> None:
        """Bring no more."""
        self._subscription.on_due(_nothing)
        self.gone()
        self._courier.leave(self)
        self.detach()

    def due(self) -> None:
        """Something is due: have the courier call in the next turn of the loop."""
        if not self.queued and not self.behind:
            self.queued = True
            self._courier.call(self)

    def deliver(self, now: float, joined: Joined) -> None:
        """Send all that is due."""
        self.queued = False
        if self.behind:
            return
        if wires := self._subscription.take() or (PINGS if self.silent else ()):
            self.silent = False
            self.spoke_at = now
            self.write(wires, joined)
        if self._subscription.complete and not self.behind:
            self._end(there=True)

    def catch_up(self) -> None:
        """The client has read: go on."""
        if not self.over.done():
            self.behind = False
            self.due()

    def gone(self) -> None:
        """The client is gone."""
        self._end(there=False)

    def _end(self, *, there: bool) -> None:
        self.behind = True
        if not self.over.done():
            self.over.set_result(there)

    @abstractmethod
    def write(self, wires: Sequence[Wire], joined: Joined) -> None:
        """Send frames. Where the client must read first, be `behind` until `catch_up`."""

    @abstractmethod
    def detach(self) -> None:
        """Let go of the connection."""

    def fail(self) -> None:
        """Nothing can be sent any more, for whatever reason."""
        self.gone()


class Courier:
    """Calls at all clients of an event loop that have something due, and at those that have been silent for too long.

    Args:
        loop: The event loop.
        silence: Seconds without a frame after which a `ping` is sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float) -> None:
        self.loop = loop
        self._silence = silence
        self._due: list[Delivery] = []
        self._tick = silence / SLOTS
        self._wheel: list[set[Delivery]] = [set() for _ in range(SLOTS)]
        self._hand = 0
        self._attended = 0
        self._timer: asyncio.TimerHandle | None = None

    def call(self, delivery: Delivery) -> None:
        """Call at a client in the next turn of the loop."""
        if not self._due:
            self.loop.call_soon(self._deliver)
        self._due.append(delivery)

    def attend(self, delivery: Delivery) -> None:
        """See to it that a client is never left in silence."""
        delivery.spoke_at = self.loop.time()
        self._put(delivery, SLOTS)
        self._attended += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self._tick, self._turn)

    def leave(self, delivery: Delivery) -> None:
        """Forget a client. With the last one, the wheel stands still."""
        self._wheel[delivery.slot].discard(delivery)
        self._attended -= 1
        if not self._attended and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if _couriers.get((self.loop, self._silence)) is self:
                del _couriers[self.loop, self._silence]

    def _deliver(self) -> None:
        now, self._due = self._due[:MOST_IN_A_TURN], self._due[MOST_IN_A_TURN:]
        if self._due:
            self.loop.call_soon(self._deliver)
        time, joined = self.loop.time(), dict[tuple[object, ...], bytes]()
        for delivery in now:
            try:
                delivery.deliver(time, joined)
            except Exception as error:  # noqa: BLE001 # the others are still to be called at
                log.debug("A client could not be sent its frames: %r", error)
                delivery.fail()

    def _turn(self) -> None:
        """Turn the wheel on by one slot."""
        self._timer = self.loop.call_later(self._tick, self._turn)
        self._hand = (self._hand + 1) % SLOTS
        here, self._wheel[self._hand] = self._wheel[self._hand], set()
        now = self.loop.time()
        for delivery in here:
            rest = delivery.spoke_at + self._silence - now
            if rest <= self._tick / 2:
                delivery.silent = True
                delivery.due()
                rest = self._silence
            self._put(delivery, math.ceil(rest / self._tick))

    def _put(self, delivery: Delivery, ticks: int) -> None:
        delivery.slot = (self._hand + min(ticks, SLOTS)) % SLOTS
        self._wheel[delivery.slot].add(delivery)


_couriers: dict[tuple[asyncio.AbstractEventLoop, float], Courier] = {}
"""Those who have somebody to call at."""


def courier(silence: float) -> Courier:
    """Return the courier of this event loop.

    Args:
        silence: Seconds without a frame after which a `ping` is sent.
    """
    loop = asyncio.get_running_loop()
    found = _couriers.get((loop, silence))
    if found is None:
        found = _couriers[loop, silence] = Courier(loop, silence)
    return found


def _nothing() -> None:
    """Do nothing."""
