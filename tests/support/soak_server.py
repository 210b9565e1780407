"""`stream-server serve`, with settings from the environment, and an endpoint `/soak` that reports internal state."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
from collections import Counter

import msgspec
import psutil
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stream_server.server.app import create_app
from stream_server.server.main import DrainingServer, build_uvicorn_config
from stream_server.settings import Settings

SEND_BUFFER = 16 * 1024


class ServerState(msgspec.Struct, frozen=True):
    """Internal state of a server."""

    subscriptions: int
    runs: int
    tasks: int
    """Tasks of its event loop, without the one of this request."""

    sockets: int
    """Connections of clients that it has not closed, without the one of this request."""

    states: dict[str, int]
    """Those connections by their state in TCP."""

    files: int
    """Open files, without the connections of clients."""

    objects: int
    """Objects that the garbage collector tracks."""

    types: dict[str, int]
    """Those objects by type, after a collection; empty if none was requested."""

    memory: int
    """Resident memory in bytes."""


_CachedFunction = type(functools.cache(repr))


async def get_state(request: Request) -> Response:
    """Return the state; `?thorough=true` collects garbage first."""
    process, hub = psutil.Process(), request.app.state.hub
    types: Counter[str] = Counter()
    if request.query_params.get("thorough") == "true":
        _empty_caches()
        gc.collect()
        types.update(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    port = request.url.port
    sockets = [
        one for one in process.net_connections("tcp") if one.laddr.port == port and one.status != psutil.CONN_LISTEN
    ]
    statistics = hub.statistics()
    state = ServerState(
        subscriptions=statistics.subscriptions,
        runs=statistics.runs,
        tasks=len(asyncio.all_tasks()) - 1,
        sockets=len(sockets) - 1,
        states=dict(Counter(one.status for one in sockets)),
        files=process.num_fds() - len(sockets),
        objects=len(gc.get_objects()),
        types=types,
        memory=process.memory_info().rss,
    )
    return Response(msgspec.json.encode(state), media_type="application/json")


def _empty_caches() -> None:
    """Empty all caches of functions. They have bounds, and keep some objects of each client until then."""
    for one in gc.get_objects():
        if isinstance(one, _CachedFunction):
            one.cache_clear()


class SmallBufferServer(DrainingServer):
    """A server with small socket buffers: frames that a client does not read are queued in the process."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings.load()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = create_app(settings)
    app.router.routes.append(Route("/soak", get_state))
    SmallBufferServer(build_uvicorn_config(app, settings), settings).run()


if __name__ == "__main__":
    main()
