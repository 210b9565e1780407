"""What connections have received is parsed in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest

from stream_server.server import parse_turns
from stream_server.server.parse_turns import PAUSE_SECONDS, SLICE_BYTES, TURN_SECONDS, ParseTurns, Unparsed
from support.waiting import eventually_async

SLOW = TURN_SECONDS / 4


class Connection(asyncio.Protocol):
    """One end of a socket pair whose parsing takes a while."""

    transport: asyncio.Transport
    unparsed: Unparsed | None = None
    is_reading_paused = False

    def __init__(self, turns: ParseTurns, log: list[tuple[Connection, int, float]], seconds: float = 0.0) -> None:
        self.turns, self.log, self.seconds = turns, log, seconds
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.turns.receive(self, data)

    def parse(self, data: bytes) -> None:
        ends_at = time.perf_counter() + self.seconds
        while time.perf_counter() < ends_at:
            pass
        self.received += data
        self.log.append((self, len(data), time.perf_counter()))


OpenConnection = Callable[..., Awaitable[Connection]]


@pytest.fixture
async def open_connection() -> AsyncIterator[OpenConnection]:
    """A function that returns a server's connection."""
    clients: list[asyncio.StreamWriter] = []
    loop = asyncio.get_running_loop()

    async def connect(turns: ParseTurns, log: list[tuple[Connection, int, float]], seconds: float = 0.0) -> Connection:
        made: list[Connection] = []

        def make() -> Connection:
            made.append(Connection(turns, log, seconds))
            return made[0]

        async with await loop.create_server(make, "127.0.0.1", 0) as server:
            _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
            clients.append(client)
            await eventually_async(lambda: bool(made))
        return made[0]

    yield connect
    for client in clients:
        client.close()
        await client.wait_closed()


async def test_a_small_piece_is_parsed_at_once(open_connection: OpenConnection) -> None:
    turns = ParseTurns(asyncio.get_running_loop())
    connection = await open_connection(turns, [])
    turns.receive(connection, b"x" * SLICE_BYTES)
    assert connection.received == b"x" * SLICE_BYTES
    assert connection.transport.is_reading()


async def test_large_pieces_are_parsed_in_turns_and_in_order(open_connection: OpenConnection) -> None:
    log: list[tuple[Connection, int, float]] = []
    turns = ParseTurns(asyncio.get_running_loop())
    connections = [await open_connection(turns, log, SLOW) for _ in range(3)]
    data = bytes(range(256)) * 80
    for connection in connections:
        turns.receive(connection, data)
        turns.receive(connection, b"the end")
        assert not connection.transport.is_reading()
    most = 0
    while not all(connection.received.endswith(b"the end") for connection in connections):
        before = len(log)
        await asyncio.sleep(0)
        most = max(most, len(log) - before)
        assert len(log) < 100
    assert [connection.received for connection in connections] == [data + b"the end"] * 3
    assert all(connection.transport.is_reading() for connection in connections)
    assert max(size for _, size, _ in log) == SLICE_BYTES
    # Each of the connections has its first turn before one has its second.
    assert {connection for connection, _, _ in log[:3]} == set(connections)
    # The last slice of a turn may begin just before its end.
    assert most <= TURN_SECONDS / SLOW + 1


async def test_the_event_loop_is_free_between_two_turns(open_connection: OpenConnection) -> None:
    log: list[tuple[Connection, int, float]] = []
    turns = ParseTurns(asyncio.get_running_loop())
    connection = await open_connection(turns, log, SLOW)
    slices = 40
    # A second piece, which comes as soon as the first was parsed, waits for the end of the pause too.
    for _ in range(2):
        turns.receive(connection, b"x" * slices * SLICE_BYTES)
        await eventually_async(lambda: connection.unparsed is None)
    times = [at for _, _, at in log]
    pauses = [later - at for at, later in pairwise(times) if later - at > PAUSE_SECONDS * 0.9]
    # A turn may end after one slice more than fit.
    assert len(pauses) >= 2 * slices // (TURN_SECONDS / SLOW + 1) - 1


async def test_what_a_closed_connection_has_sent_is_dropped(open_connection: OpenConnection) -> None:
    turns = ParseTurns(asyncio.get_running_loop())
    closed, other = [await open_connection(turns, []) for _ in range(2)]
    for connection in (closed, other):
        turns.receive(connection, b"x" * 10 * SLICE_BYTES)
    closed.transport.abort()
    await eventually_async(lambda: other.unparsed is None and closed.unparsed is None)
    assert (len(closed.received), len(other.received)) == (0, 10 * SLICE_BYTES)


async def test_a_process_keeps_a_bounded_amount(
    open_connection: OpenConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse_turns, "MAX_WAITING_BYTES", 5 * SLICE_BYTES)
    turns = ParseTurns(asyncio.get_running_loop())
    first, second = [await open_connection(turns, []) for _ in range(2)]
    for connection in (first, second):
        turns.receive(connection, b"x" * 4 * SLICE_BYTES)
    assert (first.transport.is_closing(), second.transport.is_closing()) == (False, True)
    await eventually_async(lambda: first.unparsed is None)
    turns.receive(first, b"x" * 4 * SLICE_BYTES)
    assert not first.transport.is_closing()
