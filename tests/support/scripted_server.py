"""A WebSocket server on loopback that follows a script for each connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from stream_server.protocol.frames import AnyFrame
from stream_server.protocol.wire import Wire

Script = Callable[[ServerConnection], Awaitable[None]]


def send_frames(*frames: AnyFrame | str) -> Script:
    """Return a script that sends frames and closes the connection."""

    async def script(connection: ServerConnection) -> None:
        for frame in frames:
            await connection.send(frame if isinstance(frame, str) else Wire(frame).text)

    return script


def abort_after(*frames: AnyFrame | str) -> Script:
    """Return a script that sends frames and aborts the connection."""

    async def script(connection: ServerConnection) -> None:
        await send_frames(*frames)(connection)
        connection.transport.abort()

    return script


class ScriptedServer:
    """The requests that a server has received, and its URL."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.url = ""


@asynccontextmanager
async def scripted_server(*answers: Script | Response) -> AsyncIterator[ScriptedServer]:
    """Use the next script or response for each connection, and the last one for all further connections."""
    seen = ScriptedServer()

    def current_script() -> Script | Response:
        return answers[min(len(seen.requests), len(answers)) - 1]

    def refuse(_: ServerConnection, request: Request) -> Response | None:
        seen.requests.append(request)
        answer = current_script()
        return answer if isinstance(answer, Response) else None

    async def handle(connection: ServerConnection) -> None:
        script = current_script()
        assert not isinstance(script, Response)
        await script(connection)

    async with serve(handle, "127.0.0.1", 0, process_request=refuse, close_timeout=0.1) as listening:
        seen.url = f"http://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}"
        yield seen


def response(status: HTTPStatus, body: str, **headers: str) -> Response:
    fields = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    fields["Content-Length"] = str(len(body))
    fields["Connection"] = "close"
    return Response(status.value, status.phrase, fields, body.encode())
