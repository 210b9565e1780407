"""The routes of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from stream_server.http.endpoints import (
    firehose as many_runs,
)
from stream_server.http.endpoints import (
    lists as listing,
)
from stream_server.http.endpoints import (
    multiplex,
    probe,
    run_stream,
    session,
    tickets,
    trigger,
    wait,
    websocket,
)
from stream_server.http.endpoints import (
    result as longpoll,
)
from stream_server.http.rate_limiting import Admitted, answering

RUNS = "/api/v2/dags/{dag_id}/dagRuns"
RUN_STREAM = f"{RUNS}/{{run_id}}/stream"
SESSION = "/api/v2/stream/session"

Endpoint = Callable[[Request], Awaitable[Response]]


def api_routes() -> list[BaseRoute]:
    """Return the routes of callers; each of them may have and do only so much."""
    http: tuple[tuple[str, Endpoint, str], ...] = (
        # The first one is asked for most.
        (RUN_STREAM, run_stream.stream, "GET"),
        (RUNS, trigger.trigger, "POST"),
        (f"{RUNS}/{{run_id}}/result", longpoll.result, "GET"),
        (f"{RUNS}/{{run_id}}/wait", wait.wait, "GET"),
        (f"{RUNS}/{{run_id}}/cancel", trigger.cancel, "POST"),
        (tickets.PATH, tickets.issue, "POST"),
        (f"{RUNS}/{{run_id}}/graph", listing.graph, "GET"),
        ("/api/v2/stream/runs", listing.runs, "GET"),
        ("/api/v2/stream/dags", listing.dags, "GET"),
        (SESSION, session.tell, "GET"),
        (SESSION, session.sign_in, "POST"),
        (SESSION, session.sign_out, "DELETE"),
        (probe.PROBE, probe.stream, "GET"),
        ("/api/v2/stream", many_runs.stream, "GET"),
        ("/api/v2/dags/{dag_id}/stream", many_runs.stream, "GET"),
    )
    websockets = (
        (RUN_STREAM, websocket.stream),
        (probe.PROBE, probe.websocket),
        ("/api/v2/stream", multiplex.stream),
    )
    return [
        *(Route(path, Admitted(answering(endpoint)), methods=[method]) for path, endpoint, method in http),
        *(WebSocketRoute(path, endpoint, middleware=[Middleware(Admitted)]) for path, endpoint in websockets),
    ]
