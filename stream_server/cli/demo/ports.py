"""TCP ports on the loopback interface."""

from __future__ import annotations

import socket

from stream_server.cli.demo.errors import DemoError

LOOPBACK = "127.0.0.1"

# Environment variables for processes that talk to each other there: a proxy would look for them on its own machine.
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}


def find_free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def choose_port(wanted: int | None, purpose: str) -> int:
    """Return the wanted port, or any free one.

    Args:
        wanted: The port that the user asked for, or None.
        purpose: What it is for, as the message should name it: "the stream server".

    Raises:
        DemoError: The wanted port is taken, or may not be used by this user.
    """
    if wanted is None:
        return find_free_port()
    with socket.socket() as probe:
        # As servers do: a connection that lingers after a server's end does not make its port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DemoError(
                f"Port {wanted} for {purpose} cannot be used ({reason}). "
                "Give another one, or none at all to have a free one found."
            ) from error
    return wanted
