"""One worker, as `supervisor` starts it: `python -m stream_server.server.workers CHANNEL [ADMIN] SOCKET…`."""

from __future__ import annotations

import socket
import sys

from stream_server.hub.hub import Hub
from stream_server.journal.run_store import Runs
from stream_server.server.app import create_app
from stream_server.server.journal_service import Upstream
from stream_server.server.main import Server, begin_log, uvicorn_config
from stream_server.server.metrics import Metrics
from stream_server.server.workers.parent_watch import hold, settings_from
from stream_server.server.workers.relay_client import Relayed
from stream_server.settings import Settings


def main(numbers: list[int]) -> None:
    """Serve until SIGTERM, by sockets with these numbers."""
    channel, *sockets = (socket.socket(fileno=number) for number in numbers)
    settings = settings_from(sys.stdin.buffer)
    hold(settings)
    begin_log(settings)

    def follow(_settings: Settings, hub: Hub, _runs: Runs, metrics: Metrics) -> Upstream:
        return Relayed(channel, hub, metrics)

    app = create_app(settings, follow=follow)
    admin = None if settings.admin_port is None else sockets.pop(0)
    Server(uvicorn_config(app, settings), settings, admin).run(sockets)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
