"""Parsing of what connections have received, in turns, so that no client keeps the event loop busy.

A client that sends small frames, chunks or requests causes work of some 100 ns per byte or more, and one read has up to
256 KiB. What comes in small pieces is parsed at once. The rest waits here, with reading paused, and is parsed slice by
slice: all connections together take at most `TURN_SECONDS` in one turn of the event loop, and then pause, so that they
take a third of its time however much they send.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

SLICE_BYTES = 2048
"""Bytes that are parsed at once: at most 341 frames of a WebSocket, since a masked one has 6 bytes or more."""

TURN_SECONDS = 0.002
"""A frame takes several turns of the event loop from the commit to its client, and each may contain one of these."""

PAUSE_SECONDS = 2 * TURN_SECONDS
"""Pause between two turns. Without it, the event loop is never idle while input waits, and on busy cores the process
gets less of them for its streams."""

MAX_WAITING_BYTES = 64 * 2**20
"""Bytes that wait in one process. Beyond that, the connection that has received more is aborted."""


class ParsingConnection(Protocol):
    """A connection whose input is parsed in turns."""

    transport: asyncio.Transport
    unparsed: Unparsed | None
    """What waits to be parsed."""

    @property
    def is_reading_paused(self) -> bool:
        """Whether uvicorn has paused reading."""

    def parse(self, data: bytes) -> None:
        """Parse a slice."""


class Unparsed:
    """What a connection has received and not parsed."""

    __slots__ = ("connection", "data")

    def __init__(self, connection: ParsingConnection, data: bytes) -> None:
        self.connection = connection
        self.data = memoryview(data)

    def parse_slice(self) -> None:
        data, self.data = self.data[:SLICE_BYTES], self.data[SLICE_BYTES:]
        self.connection.parse(bytes(data))


class ParseTurns:
    """The connections of one process that wait for a turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Unparsed] = deque()
        self._waiting_bytes = 0
        self._next_turn_at = 0.0
        """Time of the event loop."""

    def receive(self, connection: ParsingConnection, data: bytes) -> None:
        """Parse what a connection has received: at once if it is little, and else in turns."""
        unparsed = connection.unparsed
        if unparsed is None and len(data) <= SLICE_BYTES:
            connection.parse(data)
            return
        self._waiting_bytes += len(data)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes -= len(data)
            connection.transport.abort()
            return
        connection.transport.pause_reading()
        if unparsed is not None:
            # uvicorn has resumed reading meanwhile.
            unparsed.data = memoryview(bytes(unparsed.data) + data)
            return
        connection.unparsed = unparsed = Unparsed(connection, data)
        if not self._waiting:
            self._loop.call_at(self._next_turn_at, self._take_turn)
        self._waiting.append(unparsed)

    def _take_turn(self) -> None:
        # Not the time of the loop: uvloop reads the clock once in a turn.
        ends_at = time.perf_counter() + TURN_SECONDS
        while self._waiting and time.perf_counter() < ends_at:
            unparsed = self._waiting.popleft()
            before = len(unparsed.data)
            if self._parse(unparsed):
                self._waiting.append(unparsed)
                self._waiting_bytes -= before - len(unparsed.data)
            else:
                self._waiting_bytes -= before
        self._next_turn_at = self._loop.time() + PAUSE_SECONDS
        if self._waiting:
            self._loop.call_at(self._next_turn_at, self._take_turn)

    def _parse(self, unparsed: Unparsed) -> bool:
        """Parse a slice; return whether more is left."""
        connection, transport = unparsed.connection, unparsed.connection.transport
        if _is_open(connection):
            unparsed.parse_slice()
            if unparsed.data and _is_open(connection):
                return True
        connection.unparsed = None
        if not transport.is_closing() and not connection.is_reading_paused:
            transport.resume_reading()
        return False


def _is_open(connection: ParsingConnection) -> bool:
    """Whether a connection is open, and has not become a WebSocket: what is left of a handshake is dropped."""
    protocol: object = connection.transport.get_protocol()
    return protocol is connection and not connection.transport.is_closing()
