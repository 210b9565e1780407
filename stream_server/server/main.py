"""Running the application under uvicorn, with a shutdown that ends every stream cleanly."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from typing_extensions import override

from stream_server.auth.api_keys import ApiKeys
from stream_server.errors import SettingsError
from stream_server.server.app import create_app
from stream_server.server.client_connections import (
    HttpConnection,
    OperatorConnection,
    abort_open_streams,
    limit_receive_buffer,
    set_dead_peer_timeout,
)
from stream_server.server.operator_api import create_admin_app
from stream_server.server.websocket_connection import WebSocketConnection
from stream_server.server.workers.sockets import open_admin_listener, open_listeners
from stream_server.settings import Settings, is_loopback
from stream_server.urls import DatabaseUrl

log = logging.getLogger(__name__)

DEAD_PEER_PINGS = 3
"""A client that acknowledges nothing for so many ping intervals counts as vanished."""

GC_THRESHOLDS = (2_000, 5, 50)
"""Thresholds of the garbage collector, far above Python's. A stream is some forty objects that live as long as it does.
With Python's thresholds, they are traversed again and again while clients connect, although hardly any of them becomes
cyclic garbage. One pass over the objects of 10,000 clients takes 150 ms, in which no frame is sent. At most 600,000
objects of garbage wait for the collector."""

SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter while the event loop waits for it. With Python's 5 ms, the loop is called
up to 20 ms late while a large DAG is read in a thread; with this, 5 ms."""

ABORT_SECONDS = 0.2
"""Time that aborted connections have to close, beside the grace period."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, but with streams drained before the connections are closed.

    The end of the lifespan would be too late: uvicorn runs it after all connections have closed.

    Args:
        config: Made by `build_uvicorn_config`.
        settings: Those of the application.
        admin: Listening socket of the operators' port, if it is open already.
    """

    _settings: Settings
    _admin_socket: socket.socket | None

    def __init__(self, config: uvicorn.Config, settings: Settings, admin: socket.socket | None = None) -> None:
        super().__init__(config)
        self._settings = settings
        self._admin_socket = admin

    @override
    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, in a process that does nothing else."""
        gc.collect()
        # Imported modules live as long as the process: the collector need not traverse them.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_SECONDS)
        super().run(sockets)

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._settings.admin_port is not None and self.started:
            self.servers.append(await self._start_admin_server())
        # `servers` are uvicorn's asyncio servers; its `shutdown` closes them.
        for server in self.servers:
            for listener in server.sockets:
                limit_receive_buffer(listener)
                set_dead_peer_timeout(listener, DEAD_PEER_PINGS * self._settings.ping_interval)

    async def _start_admin_server(self) -> asyncio.Server:
        """Listen on the operators' port, with the state and the connections of this server.

        Raises:
            SettingsError: The port is in use, or the address is not one of this machine.
        """
        config = build_uvicorn_config(create_admin_app(self._settings), self._settings)
        config.load()
        loop, settings = asyncio.get_running_loop(), self._settings

        def create_connection() -> asyncio.Protocol:
            # As uvicorn's `startup` does for its own port: `lifespan.state` is what the lifespan has yielded.
            return OperatorConnection(config, self.server_state, self.lifespan.state)

        try:
            if self._admin_socket is not None:
                return await loop.create_server(create_connection, sock=self._admin_socket, backlog=config.backlog)
            server = await loop.create_server(
                create_connection, settings.admin_host, settings.admin_port, backlog=config.backlog
            )
        except OSError as error:
            # As uvicorn does when it cannot listen on its own port.
            await self.lifespan.shutdown()
            raise SettingsError(
                f"Cannot listen on {settings.admin_host}:{settings.admin_port}: {error.strerror}"
            ) from None
        for listener in server.sockets:
            log.info("Operators' endpoints are on %s port %d", *listener.getsockname()[:2])
        return server

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams end before uvicorn waits for their connections, and before it closes the listening sockets: until
        # then, `/ready` answers that this server shuts down.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.grace_period
        await self.config.app.state.hub.drain(self._settings.grace_period)  # type: ignore[union-attr]
        abort_open_streams(self.server_state.connections)
        # The other requests get what is left. uvicorn accepts fractions of a second. It also waits for aborted
        # connections, and with nothing left it would log an error.
        self.config.timeout_graceful_shutdown = max(ABORT_SECONDS, deadline - loop.time())  # type: ignore[assignment]
        await super().shutdown(sockets)


def run_server(settings: Settings) -> None:
    """Serve in this process until SIGINT or SIGTERM. `check_settings` comes first.

    Raises:
        SettingsError: A port is in use, or an address is not one of this machine.
    """
    configure_logging(settings)
    (sockets,) = open_listeners(settings.host, settings.port, 1)
    for sock in sockets:
        log.info("Listening on %s port %d", *sock.getsockname()[:2])
    admin = open_admin_listener(settings)
    app = create_app(settings)
    DrainingServer(build_uvicorn_config(app, settings), settings, admin).run(sockets)


def check_settings(settings: Settings) -> None:
    """Check what settings mean together, the database's URL, and the file of API keys.

    Raises:
        SettingsError: Other machines can reach the address and no authorization was chosen, or the URL or the file is
            invalid.
    """
    DatabaseUrl.parse(settings.database_address)
    # Reads the file.
    ApiKeys(settings.api_keys_file, None)
    settings.check_auth_choice(loopback=is_loopback(settings.host))


def configure_logging(settings: Settings) -> None:
    """Log to standard error, with process ids if there are several processes."""
    process = " [%(process)d]" if settings.workers > 1 else ""
    logging.basicConfig(
        level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s{process} %(name)s: %(message)s"
    )
    # At DEBUG it logs the headers of Airflow's responses, whose cookies are credentials.
    logging.getLogger("httpcore").setLevel(logging.INFO)


def build_uvicorn_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return the configuration of uvicorn for an application."""
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
        # uvicorn has a timer for each connection; our own `ping` frames come from one timer wheel for all.
        ws_ping_interval=None,
        lifespan="on",
        log_config=None,
        # At DEBUG, uvicorn logs the headers of WebSocket handshakes, which contain credentials.
        log_level="info" if settings.log_level == "debug" else settings.log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace_period)),
    )
