"""Server-sent events (WHATWG HTML Living Standard, section 9.2)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stream_server.cursor import Cursor
from stream_server.errors import CursorError
from stream_server.frames import Wire
from stream_server.outcome import Question
from stream_server.run_state import RunKey
from stream_server.transports.pump import pump
from stream_server.transports.request import State, question, run_key

RETRY_MS = (1000, 3000)
"""Bounds of the random time after which a browser connects again."""

HEADERS = {
    # Proxies must neither store, transform (compress, and so buffer) nor buffer the stream.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def frame(wire: Wire) -> bytes:
    """Return a frame as an event: its type, its place if it has one, and its JSON."""
    place = None if wire.cursor is None else str(wire.cursor)
    return ServerSentEvent(wire.json.decode(), event=wire.type, id=place, sep="\n").encode()


async def stream(request: Request) -> Response:
    """Answer `GET …/dagRuns/{run_id}/stream`."""
    state: State = request.scope["state"]
    key, asked = run_key(request), question(request)
    await state["authorizer"].authorize(request, key)
    if _has_seen_the_end(request):
        return Response(status_code=204)
    return StreamResponse(state, key, asked)


def _has_seen_the_end(request: Request) -> bool:
    """Tell whether a returning `EventSource` has had its `end`; a 204 stops it from coming again."""
    try:
        return Cursor.parse(request.headers.get("last-event-id", "")).ended
    except CursorError:
        return False


class StreamResponse(EventSourceResponse):
    """The frames of a run, from a snapshot on.

    What sse-starlette does with a task group, a queue and an async generator for each client is done here with one
    wait: frames that are due together go out in one write. Its headers and its framing are kept.
    """

    def __init__(self, state: State, key: RunKey, asked: Question) -> None:
        super().__init__(iter(()), headers=HEADERS)
        self._hub = state["hub"]
        self._key = key
        self._question = asked
        self._silence = state["settings"].ping_interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until the stream ends, the connection must, or the client is gone."""

        async def send_frames(wires: Sequence[Wire]) -> None:
            await send(_body(b"".join([wire.framed(frame) for wire in wires])))

        async with self._hub.watch(self._key, self._question) as subscription:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send(_body(b"", more=False))
                return
            gone = asyncio.create_task(_disconnected(receive), name="sse disconnect")
            try:
                await send(_body(_retry()))
                await pump(subscription, gone=gone, silence=self._silence, send=send_frames)
                await send(_body(b"", more=False))
            finally:
                gone.cancel()


def _body(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _retry() -> bytes:
    """Return the field `retry` (WHATWG HTML 9.2.6), so chosen that clients don't come back all at once."""
    return ServerSentEvent(retry=random.randint(*RETRY_MS), sep="\n").encode()  # noqa: S311 # not for secrets


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
