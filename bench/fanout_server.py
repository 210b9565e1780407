"""The compared servers, each in a process of its own: our transports and hub, and a typical sse-starlette application.

Both get numbers over one connection to a port of its own: a line of numbers is a batch of transitions.
So nothing but the fan-out is measured; `bench.fanout --journal` has the whole way, with PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.fanout_payload import DAG_ID, STATES, run_id
from stream_server.auth.authorizer import AllowAll
from stream_server.auth.rate_limits import RateLimits
from stream_server.domain.outcome import ReturnValues
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.hub.hub import Hub
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import RunInfo, Waiting
from stream_server.server.app import create_app
from stream_server.server.main import DrainingServer, build_uvicorn_config
from stream_server.server.metrics import Metrics
from stream_server.server.request_limits import RequestLimits
from stream_server.settings import Settings

EPOCH = "0fa1"
PATH = "/api/v2/dags/{dag_id}/dagRuns/{run_id}/stream"
NO_LIMIT = 1_000_000


class Runs:
    """Runs whose state does not change; transitions come from the feed."""

    def __init__(self) -> None:
        self.cursor = JournalPosition(EPOCH, 1, 1)

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        info = RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0)
        return RunState(key, info), self.cursor

    async def read_history(
        self, key: RunKey | None, position: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        return None

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        return {}

    async def read_waiting(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        return {}

    async def reconnect(self) -> None:
        """Do nothing."""


def transition(number: int, runs: int) -> Transition:
    return Transition(
        seq=number,
        txid=number,
        at=datetime.now(timezone.utc),
        kind=TransitionKind.TASK,
        dag_id=DAG_ID,
        run_id=run_id(number % runs),
        task_id="part_00",
        map_index=-1,
        try_number=number,
        state=STATES[number % 2],
        previous_state=STATES[(number + 1) % 2],
    )


def make_server_app(runs: int, feed_port: int) -> Starlette:
    """Make the server's application with a hub without a journal."""
    source = Runs()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        hub = Hub(source, max_queued_bytes=settings().max_queued_bytes, observer=Metrics())  # type: ignore[arg-type]
        hub.start(source.cursor)
        app.state.hub = hub

        def dispatch(numbers: Sequence[int]) -> None:
            source.cursor = JournalPosition(EPOCH, numbers[-1] + 1, numbers[-1] + 1)
            hub.dispatch([transition(number, runs) for number in numbers], source.cursor)

        async with _serve_feed(feed_port, dispatch):
            loop = asyncio.get_running_loop()
            yield {
                "settings": settings(),
                "hub": hub,
                "authorizer": AllowAll(),
                "scheduler": WriteScheduler(loop, settings().ping_interval),
                "request_limits": RequestLimits(settings(), loop),
                "rate_limits": RateLimits(
                    settings().max_streams_per_caller, settings().max_joins_per_second, secrets.token_bytes()
                ),
            }

    application = create_app(settings())
    application.router.lifespan_context = lifespan
    return application


def make_naive_app(runs: int, feed_port: int) -> Starlette:
    """Make an application that has a queue for each client and encodes each frame for each client."""
    queues: defaultdict[str, set[asyncio.Queue[tuple[str, dict[str, object]]]]] = defaultdict(set)

    def dispatch(numbers: Sequence[int]) -> None:
        for number in numbers:
            row = transition(number, runs)
            frame = {
                "type": "task",
                "dag_id": row.dag_id,
                "run_id": row.run_id,
                "seq": row.seq,
                "at": row.at.isoformat(),
                "task_id": row.task_id,
                "map_index": row.map_index,
                "try_number": row.try_number,
                "state": row.state,
                "previous_state": row.previous_state,
            }
            for queue in queues[row.run_id]:
                queue.put_nowait((f"{EPOCH}.{number}:{number}:", frame))

    async def stream(request: Request) -> Response:
        async def events() -> AsyncIterator[dict[str, str]]:
            queue: asyncio.Queue[tuple[str, dict[str, object]]] = asyncio.Queue()
            queues[request.path_params["run_id"]].add(queue)
            try:
                yield {"event": "snapshot", "data": json.dumps({"type": "snapshot"})}
                while True:
                    event_id, frame = await queue.get()
                    yield {"event": "task", "id": event_id, "data": json.dumps(frame, separators=(",", ":"))}
            finally:
                queues[request.path_params["run_id"]].discard(queue)

        return EventSourceResponse(events())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _serve_feed(feed_port, dispatch):
            yield

    return Starlette(routes=[Route(PATH, stream)], lifespan=lifespan)


@asynccontextmanager
async def _serve_feed(port: int, dispatch: Callable[[Sequence[int]], None]) -> AsyncIterator[None]:
    class Feed(asyncio.Protocol):
        def __init__(self) -> None:
            self.rest = b""

        def data_received(self, data: bytes) -> None:
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                dispatch([int(number) for number in line.split(b" ")])

    server = await asyncio.get_running_loop().create_server(Feed, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


def settings() -> Settings:
    """Return the defaults without the limits that the clients of a single address would exceed."""
    return Settings.load(
        database_url="postgresql://nowhere.invalid/none",
        port=0,
        max_connections=NO_LIMIT,
        max_connections_per_address=NO_LIMIT,
        max_streams_per_caller=NO_LIMIT,
        max_joins_per_second=NO_LIMIT,
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("direct", "asgi", "naive"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--feed-port", type=int, required=True)
    parser.add_argument("--runs", type=int, required=True)
    arguments = parser.parse_args()
    random.seed(1)
    if arguments.what == "naive":
        app = make_naive_app(arguments.runs, arguments.feed_port)
        config = uvicorn.Config(
            app, port=arguments.port, access_log=False, log_level="warning", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run()
        return
    config = build_uvicorn_config(make_server_app(arguments.runs, arguments.feed_port), settings())
    config.port = arguments.port
    if arguments.what == "asgi":
        config.http, config.ws = "httptools", "websockets-sansio"
    DrainingServer(config, settings()).run()


if __name__ == "__main__":
    main()
