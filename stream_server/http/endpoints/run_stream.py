"""`GET …/dagRuns/{run_id}/stream`: stream a run as server-sent events or NDJSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from stream_server.errors import Throttled, Unavailable
from stream_server.http.caller import identify_caller
from stream_server.http.delivery import ndjson, sse
from stream_server.http.delivery.asgi_scope import find_header
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.params import (
    negotiate_media_type,
    parse_ping_interval,
    parse_resume_point,
    parse_run_key,
    parse_watch_options,
)
from stream_server.http.permission import authorize_run
from stream_server.http.state import State
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode


async def stream_run(request: Request) -> Response:
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    key, options, resume_point = parse_run_key(request), parse_watch_options(request), parse_resume_point(request)
    parse_ping_interval(request)
    try:
        permission = await authorize_run(state["authorizer"], caller, key)
        if resume_point is not None and resume_point.has_ended:
            # 204 keeps an EventSource from reconnecting (WHATWG HTML 9.2.3).
            return Response(status_code=204)
        subscription = await state["hub"].subscribe(key, permission.restrict_options(options), resume_from=resume_point)
    except Unavailable as error:
        return unavailable_response(request, error)
    permission.bind(subscription)
    return build_stream_response(request, subscription)


def build_stream_response(
    request: Request,
    subscription: Subscription,
    headers: Mapping[str, str] | None = None,
    on_gone: Callable[[], None] | None = None,
) -> Response:
    """Return a response in the media type that the client prefers."""
    state: State = request.scope["state"]
    is_ndjson = negotiate_media_type(request, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE) == ndjson.MEDIA_TYPE
    response_class = ndjson.LineStream if is_ndjson else sse.EventStream
    return response_class(
        subscription, state["scheduler"], headers, on_gone=on_gone, ping_interval=parse_ping_interval(request)
    )


def unavailable_response(request: Request, error: Unavailable, headers: Mapping[str, str] | None = None) -> Response:
    """Return a stream of one `close` frame for an `EventSource`, so that it reconnects.

    After any status but 200, an `EventSource` never reconnects (WHATWG HTML 9.2.3, "fail the connection").

    Raises:
        Unavailable: The client is not an `EventSource`; `error` is raised.
    """
    is_ndjson = negotiate_media_type(request, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE) == ndjson.MEDIA_TYPE
    if is_ndjson or sse.MEDIA_TYPE not in (find_header(request.scope, b"accept") or ""):
        raise error
    state: State = request.scope["state"]
    subscription = Subscription(0)
    code = CloseCode.DRAINING if state["hub"].is_draining else CloseCode.UNAVAILABLE
    subscription.disconnect(code, str(error))
    return sse.EventStream(subscription, state["scheduler"], headers)


def is_event_source(connection: HTTPConnection) -> bool:
    """Whether the client is an `EventSource`, which never reconnects after any status but 200."""
    scope = connection.scope
    accept = find_header(scope, b"accept") or ""
    return sse.MEDIA_TYPE in accept and scope["type"] == "http" and scope["method"] == "GET"


def throttled_response(error: Throttled, scheduler: WriteScheduler) -> Response:
    """Return a stream of one `close` frame that delays the reconnect of an `EventSource`."""
    subscription = Subscription(0)
    subscription.disconnect(CloseCode.THROTTLED, str(error), retry_ms=1000 * error.retry_after)
    return sse.EventStream(subscription, scheduler, retry_ms=1000 * error.retry_after)
