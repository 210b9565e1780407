"""One worker, as the supervisor starts it: `python -m stream_server.server.workers CHANNEL [ADMIN] SOCKET…`.

The arguments are descriptors of inherited sockets: one end of the channel to the supervisor, the listening socket of
the operators' port, if there is one, and the worker's own listening sockets.
"""

from __future__ import annotations

import socket
import sys

from stream_server.hub.hub import Hub
from stream_server.journal.run_store import RunStore
from stream_server.server.app import create_app
from stream_server.server.journal_service import JournalSource
from stream_server.server.main import DrainingServer, build_uvicorn_config, configure_logging
from stream_server.server.metrics import Metrics
from stream_server.server.workers.parent_watch import read_settings, watch_parent
from stream_server.server.workers.relay_client import RelayClient
from stream_server.settings import Settings


def main(descriptors: list[int]) -> None:
    """Serve until SIGTERM."""
    channel, *listeners = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    settings = read_settings(sys.stdin.buffer)
    watch_parent(settings)
    configure_logging(settings)

    def make_journal_source(_settings: Settings, hub: Hub, run_store: RunStore, metrics: Metrics) -> JournalSource:
        return RelayClient(channel, hub, run_store, metrics)

    app = create_app(settings, make_journal_source=make_journal_source)
    admin = None if settings.admin_port is None else listeners.pop(0)
    DrainingServer(build_uvicorn_config(app, settings), settings, admin).run(listeners)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
