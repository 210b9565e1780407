"""Running the application under uvicorn, with a shutdown that ends every stream cleanly."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket

import uvicorn
from starlette.applications import Starlette

from stream_server.errors import SettingsError
from stream_server.server.app import create_app
from stream_server.server.connections import (
    HttpConnection,
    OperatorConnection,
    WebSocketConnection,
    abort_open_streams,
    set_dead_peer_timeout,
)
from stream_server.server.operator_api import create_admin_app
from stream_server.settings import Settings, is_loopback
from stream_server.urls import DatabaseUrl

log = logging.getLogger(__name__)


DEAD_PEER_PINGS = 3
"""For how many times the silence after which a `ping` is sent a client may show no sign of life."""

GC_THRESHOLDS = (2_000, 5, 50)
"""After how many new objects the collector of cycles looks at these, and how seldom at older ones. Each stream is some
forty objects that stay for as long as it does: by Python's own measure they are looked at again and again while
clients connect, in vain, since next to none leaves a cycle behind. To look at those of 10,000 clients takes 150 ms, in
which nobody is told anything. What lies about for so much longer is at most 600,000 objects."""


class DrainingServer(uvicorn.Server):
    """uvicorn, but streams are drained before their sockets are closed.

    The lifespan's end would be too late for that: uvicorn runs it after it has waited for all connections.

    Args:
        config: As `uvicorn_config` makes it.
        settings: The application's.
        admin: Socket of the port for operators, where it is open already.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, admin: socket.socket | None = None) -> None:
        super().__init__(config)
        self._settings = settings
        self._admin_socket = admin

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, in a process that does nothing else."""
        gc.collect()
        # What has been imported stays; nobody need look at it any more.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self._settings.admin_port is not None and self.started:
            self.servers.append(await self._start_admin_server())
        for server in self.servers:
            for listening in server.sockets:
                set_dead_peer_timeout(listening, DEAD_PEER_PINGS * self._settings.ping_interval)

    async def _start_admin_server(self) -> asyncio.Server:
        """Open the port of operators. It is closed with the others."""
        config = build_uvicorn_config(create_admin_app(self._settings), self._settings)
        config.load()
        loop, settings = asyncio.get_running_loop(), self._settings

        def line() -> asyncio.Protocol:
            return OperatorConnection(config, self.server_state, self.lifespan.state)

        try:
            if self._admin_socket is not None:
                return await loop.create_server(line, sock=self._admin_socket, backlog=config.backlog)
            server = await loop.create_server(line, settings.admin_host, settings.admin_port, backlog=config.backlog)
        except OSError as error:
            await self.lifespan.shutdown()
            raise SettingsError(f"The port for operators can't be opened: {error.strerror}") from None
        for listening in server.sockets:
            log.info("Operators are answered on %s port %d", *listening.getsockname()[:2])
        return server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let every stream end, then shut down as uvicorn does."""
        await self.config.app.state.hub.drain(self._settings.grace_period)  # type: ignore[union-attr]
        abort_open_streams(self.server_state.connections)
        await super().shutdown(sockets)


def run_server(settings: Settings) -> None:
    """Serve by one process until SIGINT or SIGTERM. `check` has found nothing wrong."""
    configure_logging(settings)
    app = create_app(settings)
    DrainingServer(build_uvicorn_config(app, settings), settings).run()


def check_settings(settings: Settings) -> None:
    """Look whether a server can have these settings.

    Raises:
        SettingsError: The address can be reached by others and no authorization was chosen, or the database's URL is
            none.
    """
    DatabaseUrl.parse(settings.database_url.get_secret_value())
    settings.check_auth_choice(loopback=is_loopback(settings.host))


def configure_logging(settings: Settings) -> None:
    """Write a log to standard error; where several processes do, with their numbers."""
    process = " [%(process)d]" if settings.workers > 1 else ""
    logging.basicConfig(
        level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s{process} %(name)s: %(message)s"
    )
    # It would log the headers of Airflow's answers, whose cookies are credentials.
    logging.getLogger("httpcore").setLevel(logging.INFO)


def build_uvicorn_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn runs the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpConnection,
        ws=WebSocketConnection,
        ws_per_message_deflate=False,
        ws_max_size=settings.max_message_bytes,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[*settings.trusted_proxies],
        # A timer for each connection; our own `ping` frames are sent by one wheel for all.
        ws_ping_interval=None,
        lifespan="on",
        log_config=None,
        # It would log the headers of WebSocket handshakes, credentials included.
        log_level="info" if settings.log_level == "debug" else settings.log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace_period)),
    )
