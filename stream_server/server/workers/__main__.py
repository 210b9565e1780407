"""One worker, as `supervisor` starts it: `python -m stream_server.server.workers CHANNEL [ADMIN] SOCKET…`."""

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


def main(numbers: list[int]) -> None:
    """Serve until SIGTERM, by sockets with these numbers."""
    channel, *sockets = (socket.socket(fileno=number) for number in numbers)
    settings = read_settings(sys.stdin.buffer)
    watch_parent(settings)
    configure_logging(settings)

    def follow(_settings: Settings, hub: Hub, _runs: RunStore, metrics: Metrics) -> JournalSource:
        return RelayClient(channel, hub, metrics)

    app = create_app(settings, follow=follow)
    admin = None if settings.admin_port is None else sockets.pop(0)
    DrainingServer(build_uvicorn_config(app, settings), settings, admin).run(sockets)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
