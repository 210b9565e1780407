"""TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket
import ssl
from contextlib import suppress

from stream_server.cli.demo.errors import DemoError

LOOPBACK = "127.0.0.1"

# Loading the certificates of all authorities takes 50 ms, which clients of `http` URLs do not need.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# Below the ports that Linux (from 32768) and other systems give to clients.
PORTS = range(20_000, 32_000)

# Environment variables that disable HTTP proxies: a proxy on another host cannot reach the loopback interface.
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}


def find_free_port() -> int:
    """Return a free port. Another process may take it before the caller does.

    The system does not give it to clients: a server that restarts finds it free.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise DemoError(f"none of the ports {PORTS.start} to {PORTS.stop - 1} is free")


def choose_port(wanted: int | None, purpose: str) -> int:
    """Return the wanted port, or any free one.

    Args:
        wanted: The requested port, or None for any.
        purpose: Name of the server in the error text: "stream_server".

    Raises:
        DemoError: The port is in use, or this user may not use it.
    """
    if wanted is None:
        return find_free_port()
    with socket.socket() as probe:
        # As servers do: connections in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DemoError(
                f"port {wanted} for {purpose} is not available ({reason}); choose another one, or omit it to use any"
                " free port"
            ) from error
    return wanted
