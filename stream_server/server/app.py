"""The ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from stream_server.http import static_pages
from stream_server.http.delivery.asgi_scope import CONNECTION, RESPONSE, SERVER_SEND_KEY
from stream_server.http.problems import EXCEPTION_HANDLERS, raise_not_found
from stream_server.http.rate_limiting import AddressRateMiddleware
from stream_server.http.routes import api_routes
from stream_server.server.client_connections import find_response
from stream_server.server.journal_service import JournalService, MakeJournalSource
from stream_server.server.lifespan import make_lifespan
from stream_server.server.operator_api import build_host_check, operator_routes, probe_routes
from stream_server.settings import Settings

log = logging.getLogger(__name__)

ALLOWED_METHODS = ("GET", "POST", "DELETE")
ALLOWED_REQUEST_HEADERS = (
    *(
        "Authorization",
        "Cache-Control",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "Prefer",
        "X-Requested-With",
    ),
    *("Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version", "Mcp-Session-Id"),
    # Headers that the npm package `openai` adds to each request. Browsers may leave the first one out.
    "User-Agent",
    *(
        f"X-Stainless-{name}"
        for name in (
            *("Arch", "Lang", "OS", "Package-Version", "Runtime", "Runtime-Version"),
            *("Retry-Count", "Timeout", "Helper-Method", "Poll-Helper", "Custom-Poll-Interval"),
        )
    ),
    # Headers that libraries for tracing add to each request: W3C Trace Context, W3C Baggage, Sentry.
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)
EXPOSED_RESPONSE_HEADERS = ("Content-Location", "Location", "Mcp-Session-Id", "Preference-Applied", "Retry-After")
"""What pages of other origins may use, send and read, besides the safelisted ones (WHATWG Fetch, section 3.2)."""


class Application(Starlette):
    """Adds to each scope what streams need of the server (`http.delivery.scope`), and removes the URL prefix."""

    url_prefix = ""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.url_prefix and scope["type"] != "lifespan":
            _remove_prefix(scope, self.url_prefix)
        extensions = scope["extensions"] = scope.get("extensions") or {}
        if scope["type"] == "http":
            extensions[RESPONSE] = find_response(receive)
        if CONNECTION not in extensions:
            scope[SERVER_SEND_KEY] = send
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Both refer to the server's object for the request, which refers to the scope. Without these references, it
            # is freed now, and not by the garbage collector.
            extensions.pop(RESPONSE, None)
            scope.pop(SERVER_SEND_KEY, None)


def create_app(
    settings: Settings, *, make_journal_source: MakeJournalSource = JournalService, drains: bool = False
) -> Application:
    """Make the application.

    Args:
        settings: Those of the application.
        make_journal_source: Makes the source of batches. By default, the application follows the journal itself.
        drains: Whether it drains its streams on signals, because the server that runs it does not.
    """
    app = Application(
        # What middleware adds to the head of a stream may depend on `Origin` only: cached heads are keyed by it
        # (`delivery.streaming_body`).
        middleware=[
            *([] if settings.uses_airflow_auth else [build_host_check(settings, settings.host)]),
            *([_build_cors_middleware(settings)] if settings.cors_origins else []),
        ],
        routes=[
            *api_routes(),
            *([] if settings.admin_port is not None else [*probe_routes(), *_limit_rates(operator_routes())]),
            *(_limit_rates(static_pages.page_routes(settings.url_prefix)) if settings.web else []),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=make_lifespan(settings, make_journal_source, drains=drains),
    )
    app.url_prefix = settings.url_prefix
    app.router.default = AddressRateMiddleware(raise_not_found)
    return app


def _remove_prefix(scope: Scope, prefix: str) -> None:
    """Remove the URL prefix from the path. A proxy may have removed it already."""
    path: str = scope["path"]
    if path == prefix or path.startswith(f"{prefix}/"):
        # The prefix has no character that may be percent-encoded.
        scope["path"], scope["raw_path"] = path[len(prefix) :] or "/", scope["raw_path"][len(prefix) :] or b"/"


def _limit_rates(routes: Sequence[Route]) -> list[BaseRoute]:
    """Return routes whose requests count toward the rate of the client's address."""
    for route in routes:
        route.app = AddressRateMiddleware(route.app)
    return [*routes]


def _build_cors_middleware(settings: Settings) -> Middleware:
    origins = settings.cors_origins
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=ALLOWED_METHODS,
        allow_headers=(*ALLOWED_REQUEST_HEADERS, *settings.cors_headers),
        # Cookies, for origins that are listed. `http.caller` refuses requests with cookies from others.
        allow_credentials="*" not in origins,
        expose_headers=EXPOSED_RESPONSE_HEADERS,
    )
