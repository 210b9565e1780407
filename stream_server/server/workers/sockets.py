"""The sockets that workers accept connections from.

On Linux each worker has a socket of its own at the same port (`SO_REUSEPORT`): the system spreads connections evenly,
where those who share one are served by whoever wakes first. The sockets belong to the process that starts the workers,
so that connections to one that has died wait for the next, and are not refused.
"""

from __future__ import annotations

import platform
import socket
from contextlib import closing

from stream_server.errors import SettingsError

SPREADS_CONNECTIONS = platform.system() == "Linux"
"""Whether the system spreads connections over the sockets at one port. Others give all of them to the newest."""

BACKLOG = 2048
"""Connections that may wait to be accepted, of each socket."""


def open_listeners(host: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Return the sockets of each worker: one for each address of the host.

    Args:
        host: Name or address.
        port: Port; 0 takes a free one.
        workers: How many there are.

    Raises:
        SettingsError: There is no such address here, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address[0]) for family, _, _, _, address in found))
        port = _find_free_port(*addresses[0], port)
        if not SPREADS_CONNECTIONS:
            return [[_open_listener(*address, port, shared=False) for address in addresses]] * workers
        return [[_open_listener(*address, port, shared=True) for address in addresses] for _ in range(workers)]
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host}:{port}: {error.strerror}") from error


def _find_free_port(family: int, host: str | int, port: int) -> int:
    """Return a port that nobody listens on; with `SO_REUSEPORT` alone, we would share that of another server."""
    with closing(_bind(family, host, port, shared=False)) as sock:
        return int(sock.getsockname()[1])


def _open_listener(family: int, host: str | int, port: int, *, shared: bool) -> socket.socket:
    sock = _bind(family, host, port, shared=shared)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _bind(family: int, host: str | int, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
