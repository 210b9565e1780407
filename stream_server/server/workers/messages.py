"""What the process that follows the journal and its workers tell each other, as MessagePack.

Down go the words of the tail, in its order, to every worker. Up comes who watches, and what is counted.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from stream_server.domain.transition import Read, Transition
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import Family


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What all messages share."""


class Begin(Message, frozen=True, tag="begin"):
    """Batches will come from here on."""

    cursor: Cursor


class Batch(Message, frozen=True, tag="batch"):
    """What a read of the journal has found."""

    transitions: list[Transition]
    cursor: Cursor
    read: Read | None


class Anew(Message, frozen=True, tag="anew"):
    """What was known may not be true any more."""

    cursor: Cursor
    reason: ResetReason


class Reconnect(Message, frozen=True, tag="reconnect"):
    """The database server may be another one from here on."""

    cursor: Cursor


class Standing(Message, frozen=True, tag="standing"):
    """How the tail and the workers are doing: what `/ready` tells."""

    connected: bool
    hears: bool
    problems: list[str]
    warnings: list[str]


class Ask(Message, frozen=True, tag="ask"):
    """Tell what you have counted. Whoever does not answer for long is taken for dead."""

    number: int


class Sums(Message, frozen=True, tag="sums"):
    """What all processes together have counted: the answer to a `Scrape`."""

    number: int
    families: list[Family]


Down: TypeAlias = Begin | Batch | Anew | Reconnect | Standing | Ask | Sums


class Serving(Message, frozen=True, tag="serving"):
    """The worker begins to serve."""


class Watch(Message, frozen=True, tag="watch"):
    """Somebody has begun to watch."""


class Resync(Message, frozen=True, tag="resync"):
    """The worker could not decode or handle a message: it asks for an `Anew` with a current cursor."""


class Counted(Message, frozen=True, tag="counted"):
    """What this worker has counted: the answer to an `Ask`."""

    number: int
    watching: bool
    """Whether anything is watched."""

    families: list[Family]


class Scrape(Message, frozen=True, tag="scrape"):
    """Tell what all processes have counted."""

    number: int


Up: TypeAlias = Serving | Watch | Resync | Counted | Scrape
