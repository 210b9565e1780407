"""Connects the clients of the load generator, as fast as the server accepts them.

It uses plain sockets, so that the server is the bottleneck, and not the generator.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from bench.recorder import BenchmarkError

AT_ONCE = 256
"""Concurrent connection attempts. nginx queues no more than 511."""

CLIENTS_PER_ADDRESS = 20_000
"""Clients for each loopback address, so that ports don't run out."""

OPEN_SECONDS = 60.0
"""Seconds without progress after which connecting has failed."""

READ_BYTES = 65_536


class OpenConnection(NamedTuple):
    """A connection whose stream is open."""

    sock: socket.socket
    read: bytes
    """Bytes that have been received."""


def connect_clients(port: int, requests: Sequence[bytes], opened: bytes) -> list[OpenConnection]:
    """Connect to a port of this machine once for each of some requests, and return the connections, in order.

    Args:
        port: The port.
        requests: What is sent on each connection.
        opened: Text in the response of an open stream.

    Raises:
        BenchmarkError: A connection was closed, or no data arrived in time.
    """
    dialed: dict[int, OpenConnection] = {}
    waiting: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for index in range(min(AT_ONCE, len(requests))):
            selector.register(_start_connecting(port, requests, index), selectors.EVENT_READ, index)
        begun = min(AT_ONCE, len(requests))
        while len(dialed) < len(requests):
            events = selector.select(OPEN_SECONDS)
            if not events:
                raise BenchmarkError(f"Nothing has come for {OPEN_SECONDS:g} s")
            for key, _ in events:
                index, sock = key.data, key.fileobj
                assert isinstance(sock, socket.socket), "it was registered"
                data = sock.recv(READ_BYTES)
                if not data:
                    raise BenchmarkError("A connection was closed at once")
                data = waiting.pop(index, b"") + data
                if opened not in data:
                    waiting[index] = data
                    continue
                selector.unregister(sock)
                dialed[index] = OpenConnection(sock, data)
                if begun < len(requests):
                    selector.register(_start_connecting(port, requests, begun), selectors.EVENT_READ, begun)
                    begun += 1
    return [dialed[index] for index in range(len(requests))]


def _start_connecting(port: int, requests: Sequence[bytes], index: int) -> socket.socket:
    sock = socket.socket()
    # Avoid thousands of sockets in TIME_WAIT on both sides.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.bind((f"127.0.0.{2 + index // CLIENTS_PER_ADDRESS}", 0))
    # The kernel completes the handshake, so connecting does not wait for the server.
    sock.connect(("127.0.0.1", port))
    sock.sendall(requests[index])
    sock.setblocking(False)
    return sock
