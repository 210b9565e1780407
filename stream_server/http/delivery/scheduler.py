"""The courier of an event loop: calls at each client that has something due, or has heard nothing for too long.

A subscription says that something is due; the courier hands it on in the loop's next turn, so that all that becomes due
in one turn goes out in one write, and without a task or a timer for each client.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from stream_server.http.delivery.pump import PING
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

PINGS = (PING,)

MOST_IN_A_TURN = 500
"""Deliveries after which the event loop does what else there is to do, before it goes on with the others."""

SLOTS = 16
"""Into how many parts the wheel of heartbeats divides the time of silence."""

TRANSPORTS = ("sse", "ndjson", "websocket", "multiplex", "result", "wait")
"""Ways to a client, as metrics name them; the last two wait for one answer."""

AGE_SPREAD = (0.9, 1.0)
"""A connection lives for so much of the age that is allowed, so that those who came at once don't all go at once."""

PARTING_TURNS = 20
"""For so many times of silence a client may take to read what is due when its connection ends. Then it is cut off: else
who reads a byte now and then would be here for days."""

Joined = MutableMapping[tuple[object, ...], bytes]
"""What several clients get in one write, made once: by way of framing and frames."""


class Tally:
    """What has been sent by one transport."""

    __slots__ = ("bytes", "frames", "waiting")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        """Of frames, as they are framed."""

        self.waiting = 0
        """Requests that wait for an answer, and get no frames."""

    @contextmanager
    def one_waiting(self) -> Iterator[None]:
        """Count a request that waits."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class Source(Protocol):
    """Where the frames of a delivery come from: a `Subscription`, or many."""

    @property
    def is_complete(self) -> bool:
        """Whether the last frame of the connection is due, or has been taken."""

    @property
    def closed(self) -> Close | None:
        """Why the connection ends before the stream does."""

    def on_due(self, notify: Callable[[], object]) -> None:
        """Have something called whenever a frame becomes due."""

    def take(self) -> Sequence[Wire]:
        """Return all that is due, and forget it."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection, after what is due, with a `close` frame that says why."""


class Delivery(ABC):
    """What brings one client its frames.

    Args:
        subscription: Where they come from.
        courier: Who calls.
        transport: One of `TRANSPORTS`.
    """

    __slots__ = (
        *("_courier", "_parting_turns", "_subscription", "_tally", "behind", "expires_at", "over", "queued"),
        *("silent", "slot", "spoke_at", "transport_name"),
    )

    def __init__(self, subscription: Source, courier: Courier, transport: str) -> None:
        self._subscription = subscription
        self._courier = courier
        self.transport_name = transport
        self._tally = courier.tallies[transport]
        self.over: asyncio.Future[bool] = courier.loop.create_future()
        """Done when nothing more can be sent: `True` where all has been, `False` where the client is gone."""

        self.behind = False
        """Whether nothing can be sent: the client must read first, or it is over."""

        self.queued = False
        self.silent = False
        """Whether a `ping` is due, unless something else is."""

        self.spoke_at = 0.0
        self.expires_at = math.inf
        """When the connection has lived for long enough."""

        self.slot = 0
        self._parting_turns = 0

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
            self._tally.frames += len(wires)
            self.write(wires, joined)
        if self._subscription.is_complete and not self.behind:
            self._end(there=True)

    def expire(self) -> None:
        """Have the client come again: to another server, perhaps, with new rights, over a way that is there still."""
        self._subscription.disconnect(CloseCode.AGED, "The connection has lived for long enough; the stream goes on")

    def note_silence(self) -> None:
        """Nothing has been sent for a time of silence: a `ping` is due, unless it is the client that reads nothing."""
        self.silent = True
        self.due()
        if self.behind and self._subscription.is_complete:
            self._parting_turns += 1
            if self._parting_turns >= PARTING_TURNS:
                self.fail()

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

    def unsent(self) -> int:
        """Return how many bytes wait in the connection, as far as that can be told."""
        return 0

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
        age: Seconds after which a connection is closed, so that its client comes again; `None` lets it live.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float, age: float | None = None) -> None:
        self.loop = loop
        self.tallies = {transport: Tally() for transport in TRANSPORTS}
        self._silence = silence
        self._age = age
        self._after: list[Callable[[], None]] = []
        self._due: list[Delivery] = []
        self._tick = silence / SLOTS
        self._wheel: list[set[Delivery]] = [set() for _ in range(SLOTS)]
        self._hand = 0
        self._attended = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def parting_seconds(self) -> float:
        """How long a client may take to read what is due at the end."""
        return PARTING_TURNS * self._silence

    def call(self, delivery: Delivery) -> None:
        """Call at a client in the next turn of the loop."""
        if not self._due:
            self.loop.call_soon(self._deliver)
        self._due.append(delivery)

    def attend(self, delivery: Delivery) -> None:
        """See to it that a client is never left in silence."""
        now = delivery.spoke_at = self.loop.time()
        if self._age is not None:
            delivery.expires_at = now + self._age * random.uniform(*AGE_SPREAD)  # noqa: S311 # not for secrets
        self._put(delivery, now + self._silence, now)
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

    def when_written(self, call: Callable[[], None]) -> None:
        """Have something called when all that is due now has been written; not at all, where nothing is."""
        if self._due:
            self._after.append(call)

    def statistics(self) -> dict[str, WireStatistics]:
        """Tell, for each transport, what has been sent, and what waits in connections."""
        connections, unsent = Counter[str](), Counter[str]()
        for slot in self._wheel:
            for delivery in slot:
                connections[delivery.transport_name] += 1
                unsent[delivery.transport_name] += delivery.unsent()
        return {
            name: WireStatistics(connections[name] + tally.waiting, tally.frames, tally.bytes, unsent[name])
            for name, tally in self.tallies.items()
        }

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
        if not self._due:
            after, self._after = self._after, []
            for call in after:
                call()

    def _turn(self) -> None:
        """Turn the wheel on by one slot."""
        self._timer = self.loop.call_later(self._tick, self._turn)
        self._hand = (self._hand + 1) % SLOTS
        here, self._wheel[self._hand] = self._wheel[self._hand], set()
        now = self.loop.time()
        soon = now + self._tick / 2
        for delivery in here:
            speak_at = delivery.spoke_at + self._silence
            if delivery.expires_at <= soon:
                delivery.expires_at = math.inf
                delivery.expire()
            elif speak_at <= soon:
                delivery.note_silence()
                speak_at = now + self._silence
            self._put(delivery, speak_at, now)

    def _put(self, delivery: Delivery, speak_at: float, now: float) -> None:
        """Have the wheel come by when a `ping` is due, unless the connection is too old before."""
        ticks = math.ceil((min(speak_at, delivery.expires_at) - now) / self._tick)
        delivery.slot = (self._hand + min(max(ticks, 1), SLOTS)) % SLOTS
        self._wheel[delivery.slot].add(delivery)


def _nothing() -> None:
    """Do nothing."""


class WireStatistics(NamedTuple):
    """What one transport has sent, and what it has to send."""

    connections: int
    frames: int
    bytes: int
    unsent: int
    """Bytes that wait in connections, beside those that wait for their clients to read."""
