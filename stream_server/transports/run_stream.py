"""`GET …/dagRuns/{run_id}/stream`: a run, as server-sent events or NDJSON."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from stream_server.transports import ndjson, sse
from stream_server.transports.body import Streaming
from stream_server.transports.request import State, accepts, question, run_key, since


async def stream(request: Request) -> Response:
    """Answer the request."""
    state: State = request.scope["state"]
    key, asked = run_key(request), question(request)
    await state["authorizer"].authorize(request, key)
    came_from = since(request)
    if came_from is not None and came_from.ended:
        # It stops an EventSource from coming again.
        return Response(status_code=204)
    watch = state["hub"].watch(key, asked, since=came_from)
    return stream_response(request, Streaming(watch, state["settings"].ping_interval))


def stream_response(request: Request, streaming: Streaming, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response in the form that the client wants."""
    if accepts(request, sse.MEDIA_TYPE, ndjson.MEDIA_TYPE) == ndjson.MEDIA_TYPE:
        return ndjson.LineStream(streaming, headers)
    return sse.EventStream(streaming, headers)
