"""The ASGI application: routes, error answers, and the lifespan that holds tail and hub together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ExceptionHandler, Receive, Scope, Send

from stream_server.admission import Admission
from stream_server.airflow_api import shared_client
from stream_server.airflow_auth import AirflowAuthorizer
from stream_server.answers import Health, Readiness, TailReadiness
from stream_server.auth import Authorizer, Everybody
from stream_server.deadlines import Deadlines
from stream_server.duties import Duties, Upstream
from stream_server.edge import Edge
from stream_server.errors import AirflowRefused, StreamServerError, Throttled
from stream_server.families import encoded
from stream_server.farewell import drained_first
from stream_server.hub import Hub
from stream_server.journal.claims import Claims
from stream_server.journal.postgres import Runs
from stream_server.journal.tickets import Tickets
from stream_server.journal.waiters import Waiters
from stream_server.metrics import Metrics
from stream_server.pages import assets, listing, session
from stream_server.settings import Settings
from stream_server.transports import (
    describe,
    longpoll,
    many_runs,
    multiplex,
    probe,
    run_stream,
    tickets,
    trigger,
    wait,
    websocket,
)
from stream_server.transports.admitted import Admitted, answering
from stream_server.transports.cancellation import Cancellations
from stream_server.transports.courier import Courier
from stream_server.transports.delivery import LINE, SEND
from stream_server.transports.request import State

log = logging.getLogger(__name__)

RUNS = "/api/v2/dags/{dag_id}/dagRuns"
RUN_STREAM = f"{RUNS}/{{run_id}}/stream"
SESSION = "/api/v2/stream/session"

Endpoint = Callable[[Request], Awaitable[Response]]

ASKED_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
TOLD_HEADERS = ("Content-Location", "Location", "Retry-After")
"""What pages of other origins may send and read, beside what everybody may (WHATWG Fetch, section 3.2)."""


class Problem(JSONResponse):
    """An `application/problem+json` answer (RFC 9457)."""

    media_type = "application/problem+json"


class Application(Starlette):
    """An application whose streams know the `send` of the server that runs it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if LINE in scope:
            await super().__call__(scope, receive, send)
            return
        scope[SEND] = send
        try:
            await super().__call__(scope, receive, send)
        finally:
            # What it belongs to has the scope: it shall be freed now, and not by the collector of cycles.
            del scope[SEND]


Follow: TypeAlias = Callable[[Settings, Hub, Runs, Metrics], Upstream]
"""Makes what an application hears of the journal by."""


class ServerState(State):
    """What the application's lifespan gives to the server itself and to operators' endpoints, beside that."""

    upstream: Upstream
    edge: Edge


def create_app(settings: Settings, *, follow: Follow = Duties, drains: bool = False) -> Application:
    """Make the application.

    Args:
        settings: The settings.
        follow: Makes what it hears of the journal by; by itself it follows the journal alone.
        drains: Whether it sees to it by itself that streams end before the server that runs it does.
    """
    app = Application(
        # What they add to the head of a stream depends on its `Origin` alone: heads are kept by that (`body._head`).
        middleware=[_cors(settings.cors_origins)] if settings.cors_origins else [],
        routes=[
            *_api(),
            *([] if settings.admin_port is not None else _operation()),
            *(assets.routes() if settings.web else []),
        ],
        exception_handlers=ERRORS,
        lifespan=_lifespan(settings, follow, drains=drains),
    )
    app.router.default = _nothing
    return app


def _cors(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=ASKED_HEADERS,
        # Cookies, for origins that are named; `refuse_foreign_origin` sees to the rest.
        allow_credentials="*" not in origins,
        expose_headers=TOLD_HEADERS,
    )


def create_admin_app(settings: Settings) -> Starlette:
    """Make the application that answers operators, where they have a port of their own.

    It has no lifespan: it lives by that of the other one.
    """
    return Starlette(routes=_operation(), exception_handlers=ERRORS)


def _api() -> list[BaseRoute]:
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


def _operation() -> list[BaseRoute]:
    """Return the routes of operators."""
    return [
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/metrics", _metrics),
        *describe.routes(),
    ]


def _lifespan(settings: Settings, follow: Follow, *, drains: bool) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[ServerState]:
        url = settings.database_url.get_secret_value()
        runs = Runs(
            url,
            pool_size=settings.pool_size,
            max_result_bytes=settings.max_result_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        metrics = Metrics()
        hub = Hub(runs, max_queued_bytes=settings.max_queued_bytes, observer=metrics)
        age = settings.max_connection_age or None
        courier = Courier(asyncio.get_running_loop(), settings.ping_interval, age)
        metrics.attend_hub(hub)
        metrics.attend_wire(courier)
        upstream = follow(settings, hub, runs, metrics)
        cancellations = Cancellations(hub, Waiters(runs))
        loop = asyncio.get_running_loop()
        edge = Edge(settings, loop)
        idle: Deadlines[Callable[[], None]] = Deadlines(loop, settings.idle_timeout, lambda over: over())
        airflow: httpx.AsyncClient | None = None
        if settings.airflow_url is not None:
            airflow = shared_client(settings.airflow_url, settings.airflow_timeout)
        authorizer: Authorizer = Everybody()
        if settings.asks_airflow and airflow is not None:
            authorizer = AirflowAuthorizer(airflow, good_for=settings.auth_cache, grace=settings.auth_grace)
        app.state.hub = hub
        tasks = [
            asyncio.create_task(upstream.run(), name="following of the journal"),
            asyncio.create_task(cancellations.run(), name="keeper of cancellations"),
        ]
        if isinstance(authorizer, AirflowAuthorizer):
            tasks.append(asyncio.create_task(authorizer.guards.run(), name="guards"))
        for task in tasks:
            task.add_done_callback(_stop_process)
        state = ServerState(
            settings=settings,
            hub=hub,
            upstream=upstream,
            courier=courier,
            authorizer=authorizer,
            airflow=airflow,
            runs=runs,
            claims=Claims(runs),
            tickets=Tickets(runs),
            cancellations=cancellations,
            admission=Admission(settings.max_streams_per_caller, settings.max_joins_per_second, secrets.token_bytes()),
            edge=edge,
            idle=idle,
        )
        try:
            with drained_first(partial(hub.drain, settings.grace_period)) if drains else nullcontext():
                yield state
        finally:
            edge.close()
            idle.close()
            await cancellations.close()
            if isinstance(authorizer, AirflowAuthorizer):
                await authorizer.close()
            if airflow is not None:
                await airflow.aclose()
            for task in tasks:
                task.remove_done_callback(_stop_process)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await hub.close()
            await runs.close()

    return lifespan


def _stop_process(task: asyncio.Task[None]) -> None:
    """Stop a process whose tail has died: a supervisor starts a working one, while a deaf one would look healthy."""
    log.critical("The %s has died", task.get_name(), exc_info=None if task.cancelled() else task.exception())
    os.kill(os.getpid(), signal.SIGTERM)


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Refuse a handshake as any request is: Starlette would say 403, and not why."""
    raise HTTPException(HTTPStatus.NOT_FOUND)


async def _health(request: Request) -> Response:
    return Response(msgspec.json.encode(Health(status="ok")), media_type="application/json")


async def _ready(request: Request) -> Response:
    """Answer 200 while streams are whole and live, else 503 with the reasons."""
    state: ServerState = request.scope["state"]
    status = state["upstream"].status
    problems = [*status.problems, *(["the server is shutting down"] if state["hub"].draining else [])]
    readiness = Readiness(
        status="unavailable" if problems else "ready",
        problems=problems,
        warnings=state["upstream"].warnings,
        tail=TailReadiness(connected=status.connected, doorbell=status.hears),
    )
    return Response(msgspec.json.encode(readiness), 503 if problems else 200, media_type="application/json")


async def _metrics(request: Request) -> Response:
    """Answer a scrape. Nothing is asked for it: the database was measured before."""
    state: ServerState = request.scope["state"]
    body, media_type = encoded(await state["upstream"].families(), request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


async def _answer_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, StreamServerError), "registered for that class"
    if isinstance(error, Throttled) and run_stream.is_event_source(connection):
        return run_stream.turned_away(error, connection.scope["state"]["courier"])
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AirflowRefused) and error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    return Problem(error.problem(), error.status, headers)


async def _answer_http_exception(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for that class"
    title = HTTPStatus(error.status_code).phrase
    detail, path, headers = error.detail, connection.scope["path"], dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        kind = "nothing" if connection.scope["type"] == "http" else "no WebSocket"
        detail = f"There is {kind} at {path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"There is no {connection.scope['method']} at {path}, but {headers['Allow']}"
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": detail}
    return Problem(body, error.status_code, headers)


async def _answer_fault(connection: HTTPConnection, error: Exception) -> Response:
    """Answer what nobody foresaw. Starlette raises it again, so that it is logged; the client learns nothing of it."""
    body = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "The server has a fault; its log says more",
    }
    return Problem(body, 500)


ERRORS: Mapping[Any, ExceptionHandler] = {
    StreamServerError: _answer_error,
    HTTPException: _answer_http_exception,
    Exception: _answer_fault,
}


def __getattr__(name: str) -> Starlette:
    """Make `app`, configured by the environment, for `uvicorn stream_server.app:app`.

    Raises:
        SettingsError: A setting is missing or wrong. Since a server of somebody else's choice does not tell us who can
            connect, the authorization must have been chosen.
    """
    if name != "app":
        raise AttributeError(name)
    settings = Settings.load()
    settings.require_auth_choice(loopback=False)
    # It has no second port.
    return create_app(settings.model_copy(update={"admin_port": None}), drains=True)
