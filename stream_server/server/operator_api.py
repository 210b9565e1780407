"""The operators' endpoints: health, readiness, metrics."""

from __future__ import annotations

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stream_server.http.docs import routes as describe
from stream_server.http.host_check import HostCheckMiddleware
from stream_server.http.problems import EXCEPTION_HANDLERS
from stream_server.protocol.bodies import Health, Readiness, TailReadiness
from stream_server.server.lifespan import ServerState
from stream_server.settings import Settings


def create_admin_app(settings: Settings) -> Starlette:
    """Make the application of the operators' port. It has no lifespan: it uses the state of the main application."""
    return Starlette(
        routes=[*probe_routes(), *operator_routes()],
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=[build_host_check(settings, settings.admin_host)],
    )


def build_host_check(settings: Settings, host: str) -> Middleware:
    """Return the middleware of a port that needs no credential, which listens on a host."""
    return Middleware(HostCheckMiddleware, settings.unauthenticated_hosts(host))


def probe_routes() -> list[Route]:
    return [Route("/health", _get_health), Route("/ready", _get_readiness)]


def operator_routes() -> list[Route]:
    return [Route("/metrics", _get_metrics), *describe.document_routes()]


async def _get_health(request: Request) -> Response:
    return Response(msgspec.json.encode(Health(status="ok")), media_type="application/json")


async def _get_readiness(request: Request) -> Response:
    """Answer 200 while streams are complete and live, otherwise 503 with the reasons."""
    state: ServerState = request.scope["state"]
    status = state["journal_source"].status
    problems = [*status.problems, *(["the server is shutting down"] if state["hub"].is_draining else [])]
    readiness = Readiness(
        status="unavailable" if problems else "ready",
        problems=problems,
        warnings=state["journal_source"].warnings,
        tail=TailReadiness(connected=status.is_connected, doorbell=status.receives_notifications),
    )
    return Response(msgspec.json.encode(readiness), 503 if problems else 200, media_type="application/json")


async def _get_metrics(request: Request) -> Response:
    state: ServerState = request.scope["state"]
    body, media_type = await state["metrics_pages"].read(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)
