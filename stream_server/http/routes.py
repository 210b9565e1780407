"""The route table of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from stream_server.http.agui.endpoints import connect_agent, get_capabilities, run_agent, stop_agent
from stream_server.http.ai_sdk.endpoints import answer_chat, resume_chat, stop_chat
from stream_server.http.endpoints import (
    firehose,
    human_input,
    lists,
    multiplex,
    probe,
    result,
    run_stream,
    sign_in,
    tickets,
    trigger,
    wait,
    websocket,
)
from stream_server.http.mcp.authorization import METADATA, get_resource_metadata
from stream_server.http.mcp.endpoints import receive_message, resume_response
from stream_server.http.openai.endpoints import complete_chat, get_model, list_models
from stream_server.http.openai.error_responses import ErrorResponseMiddleware
from stream_server.http.openai.responses import cancel_response, create_response, get_response
from stream_server.http.rate_limiting import AddressRateMiddleware, RateLimitMiddleware, as_asgi_app

RUNS = "/api/v2/dags/{dag_id}/dagRuns"
RUN_STREAM = f"{RUNS}/{{run_id}}/stream"
CHAT = "/api/v2/dags/{dag_id}/chat"
AG_UI = "/api/v2/dags/{dag_id}/ag-ui"
SESSION = "/api/v2/stream/session"
MCP = "/mcp"

Endpoint = Callable[[Request], Awaitable[Response]]


def api_routes() -> list[BaseRoute]:
    """Return the routes of the API, all with rate limits."""
    http: tuple[tuple[str, Endpoint, str], ...] = (
        # Starlette compares in this order: the most frequent first.
        (RUN_STREAM, run_stream.stream_run, "GET"),
        (RUNS, trigger.trigger_run, "POST"),
        (f"{RUNS}/{{run_id}}/result", result.get_result, "GET"),
        (f"{RUNS}/{{run_id}}/wait", wait.wait_for_run, "GET"),
        (f"{RUNS}/{{run_id}}/cancel", trigger.cancel_run, "POST"),
        (f"{RUNS}/{{run_id}}/taskInstances/{{task_id}}/input", human_input.answer_request, "POST"),
        (tickets.TICKETS_PATH, tickets.issue_ticket, "POST"),
        (f"{RUNS}/{{run_id}}/graph", lists.get_run_graph, "GET"),
        ("/api/v2/stream/runs", lists.list_runs, "GET"),
        ("/api/v2/stream/dags", lists.list_dags, "GET"),
        (SESSION, sign_in.get_session, "GET"),
        (SESSION, sign_in.sign_in, "POST"),
        (SESSION, sign_in.sign_out, "DELETE"),
        (probe.PROBE_PATH, probe.stream_pings, "GET"),
        ("/api/v2/stream", firehose.stream_firehose, "GET"),
        ("/api/v2/dags/{dag_id}/stream", firehose.stream_firehose, "GET"),
        (CHAT, answer_chat, "POST"),
        (f"{CHAT}/{{chat_id}}/stream", resume_chat, "GET"),
        (f"{CHAT}/{{chat_id}}/stop", stop_chat, "POST"),
        (AG_UI, run_agent, "POST"),
        (AG_UI, get_capabilities, "GET"),
        (f"{AG_UI}/{{thread_id:path}}/connect", connect_agent, "POST"),
        (f"{AG_UI}/{{thread_id:path}}/stop", stop_agent, "POST"),
        (MCP, receive_message, "POST"),
        (MCP, resume_response, "GET"),
    )
    websockets = (
        (RUN_STREAM, websocket.serve_run_websocket),
        (probe.PROBE_PATH, probe.serve_ping_websocket),
        ("/api/v2/stream", multiplex.serve_multiplex),
    )
    return [
        *(Route(path, RateLimitMiddleware(as_asgi_app(endpoint)), methods=[method]) for path, endpoint, method in http),
        *(
            WebSocketRoute(path, endpoint, middleware=[Middleware(RateLimitMiddleware)])
            for path, endpoint in websockets
        ),
        *_openai_routes(),
        *(
            Route(
                path,
                AddressRateMiddleware(as_asgi_app(get_resource_metadata)),
                methods=["GET"],
                include_in_schema=path != METADATA,
            )
            for path in (METADATA, METADATA + MCP)
        ),
    ]


def _openai_routes() -> list[BaseRoute]:
    routes: tuple[tuple[str, Endpoint, str], ...] = (
        ("/chat/completions", complete_chat, "POST"),
        ("/responses", create_response, "POST"),
        ("/responses/{response_id}", get_response, "GET"),
        ("/responses/{response_id}/cancel", cancel_response, "POST"),
        ("/models", list_models, "GET"),
        ("/models/{model}", get_model, "GET"),
    )
    return [
        Route(
            prefix + path,
            ErrorResponseMiddleware(RateLimitMiddleware(as_asgi_app(endpoint))),
            methods=[method],
            include_in_schema=bool(prefix),
        )
        for prefix in ("/v1", "")
        for path, endpoint, method in routes
    ]
