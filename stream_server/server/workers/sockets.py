"""The listening sockets of the workers.

On Linux, each worker has its own socket on the same port (`SO_REUSEPORT`), and the kernel spreads connections evenly
over them; with one shared socket, the worker that wakes up first gets most connections. The supervisor owns the
sockets: while a worker is replaced, connections to it wait in the backlog and are not refused.
"""

from __future__ import annotations

import logging
import platform
import socket
from contextlib import closing

from stream_server.errors import SettingsError
from stream_server.settings import Settings

log = logging.getLogger(__name__)

SPREADS_CONNECTIONS = platform.system() == "Linux"
"""Whether the kernel spreads connections over the sockets on one port. Other kernels give all to the newest socket."""

BACKLOG = 2048
"""Length of the accept queue of each socket."""


def open_listeners(host: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Open the listening sockets of each worker: one for each address of the host.

    Args:
        host: Name or address.
        port: 0 for a free port.
        workers: Number of workers.

    Raises:
        SettingsError: The host has no address on this machine, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address[0]) for family, _, _, _, address in found))
        port = _find_free_port(*addresses[0], port)
        if not SPREADS_CONNECTIONS:
            return [[_open_listener(*address, port, reuse_port=False) for address in addresses]] * workers
        return [[_open_listener(*address, port, reuse_port=True) for address in addresses] for _ in range(workers)]
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host}:{port}: {error.strerror}") from error


def open_admin_listener(settings: Settings) -> socket.socket | None:
    """Open the listening socket of the operators' port, which workers share; `None` without that port.

    Raises:
        SettingsError: The address is not one of this machine, or the port is in use.
    """
    if settings.admin_port is None:
        return None
    ((admin, *_),) = open_listeners(settings.admin_host, settings.admin_port, 1)
    log.info("Operators' endpoints are on %s port %d", *admin.getsockname()[:2])
    return admin


def _find_free_port(family: int, host: str | int, port: int) -> int:
    """Return the port, or a free one in place of 0.

    Raises:
        OSError: Another process listens on it. Bound with `SO_REUSEPORT` alone, we would share that process's port.
    """
    with closing(_bind(family, host, port, reuse_port=False)) as sock:
        return int(sock.getsockname()[1])


def _open_listener(family: int, host: str | int, port: int, *, reuse_port: bool) -> socket.socket:
    sock = _bind(family, host, port, reuse_port=reuse_port)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _bind(family: int, host: str | int, port: int, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
