"""`GET …/dagRuns/{run_id}/stream`: a run, as server-sent events or NDJSON."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from stream_server.errors import Throttled, Unavailable
from stream_server.http.caller import identify_caller
from stream_server.http.delivery import ndjson, sse
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.delivery.scope import find_header
from stream_server.http.delivery.streaming_body import Streaming
from stream_server.http.params import negotiate_media_type, parse_resume_point, parse_run_key, parse_watch_options
from stream_server.http.permission import authorize_run
from stream_server.http.state import State
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode


async def stream_run(request: Request) -> Response:
    """Answer the request."""
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    key, asked = parse_run_key(request), parse_watch_options(request)
    try:
        permission = await authorize_run(state["authorizer"], caller, key)
    except Unavailable as error:
        return unavailable_response(request, error)
    came_from = parse_resume_point(request)
    if came_from is not None and came_from.has_ended:
        # It stops an EventSource from coming again.
        return Response(status_code=204)
    watch = permission.guarded(state["hub"].subscribe(key, permission.restrict_options(asked), since=came_from))
    return build_stream_response(request, Streaming(watch, state["scheduler"]))


def unavailable_response(request: Request, error: Unavailable) -> Response:
    """Return the response where a stream can't be had just now: an `EventSource` gets one that says so.

    All others are told by `error`, which is raised before the first header.
    """
    state: State = request.scope["state"]
    return build_stream_response(request, Streaming(_Failing(error), state["scheduler"]))


def build_stream_response(request: Request, streaming: Streaming, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response in the form that the client wants."""
    if negotiate_media_type(request, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE) == ndjson.MEDIA_TYPE:
        return ndjson.LineStream(streaming, headers)
    if sse.MEDIA_TYPE in (find_header(request.scope, b"accept") or ""):
        state: State = request.scope["state"]
        streaming = Streaming(_ComingAgain(streaming.watch, state["hub"]), streaming.scheduler, streaming.on_gone)
    return sse.EventStream(streaming, headers)


class _ComingAgain(AbstractAsyncContextManager[Subscription]):
    """Has an `EventSource` come again where a stream can't be had just now.

    It gives up for good after any status but 200 (WHATWG HTML 9.2.3, "fail the connection"), so that it gets a stream
    which says so, and ends.
    """

    __slots__ = ("_entered", "_hub", "_watch")

    def __init__(self, watch: AbstractAsyncContextManager[Subscription], hub: Hub) -> None:
        self._watch, self._hub = watch, hub
        self._entered = False

    async def __aenter__(self) -> Subscription:
        try:
            subscription = await self._watch.__aenter__()
        except Unavailable as error:
            subscription = Subscription(0)
            subscription.disconnect(CloseCode.DRAINING if self._hub.is_draining else CloseCode.UNAVAILABLE, str(error))
        else:
            self._entered = True
        return subscription

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._watch.__aexit__(kind, error, traceback) if self._entered else None


def is_event_source(connection: HTTPConnection) -> bool:
    """Tell whether a client gives up for good after any status but 200."""
    scope = connection.scope
    accept = find_header(scope, b"accept") or ""
    return sse.MEDIA_TYPE in accept and scope["type"] == "http" and scope["method"] == "GET"


def throttled_response(error: Throttled, courier: WriteScheduler) -> Response:
    """Return the answer to an `EventSource` that shall come again, but not at once."""
    subscription = Subscription(0)
    subscription.disconnect(CloseCode.THROTTLED, str(error), retry_ms=1000 * error.retry_after)
    return sse.EventStream(Streaming(nullcontext(subscription), courier), retry_ms=1000 * error.retry_after)


class _Failing(AbstractAsyncContextManager[Subscription]):
    def __init__(self, error: Unavailable) -> None:
        self._error = error

    async def __aenter__(self) -> Subscription:
        raise self._error

    async def __aexit__(self, *_: object) -> None:
        pass
