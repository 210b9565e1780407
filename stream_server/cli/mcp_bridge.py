"""`stream-server mcp`: the server's `/mcp` over standard input and output, for agents that start a program.

Each line is a message (basic/transports, stdio). A request becomes an HTTP request, and the messages of its response
become lines. Requests run side by side.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
import httpx
from anyio.abc import TaskGroup
from httpx_sse import EventSource

from stream_server.cli.standard_streams import write_output

VERSION_META = "io.modelcontextprotocol/protocolVersion"
SESSION_HEADER, VERSION_HEADER = "Mcp-Session-Id", "MCP-Protocol-Version"
METHOD_HEADER, NAME_HEADER, RESUME_HEADER = "Mcp-Method", "Mcp-Name", "Last-Event-ID"
NAME_MEMBERS = {
    "tools/call": "name",
    "resources/read": "uri",
    **dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId"),
}
"""Member that the header `Mcp-Name` repeats, by method."""

TIMEOUT = httpx.Timeout(10.0, read=None)
RETRIES = 60
"""How often a response is resumed without any event in between."""

RETRY_SECONDS = 0.5

PARSE_ERROR, INTERNAL_ERROR = -32700, -32603
CANCELLATION = "notifications/cancelled"

Message: TypeAlias = dict[str, Any]


class _Progress:
    """How far a response has come."""

    def __init__(self, request_id: str | int | None) -> None:
        self.request_id = request_id
        self.event_id: str | None = None
        self.is_answered = False


class McpBridge:
    """Passes messages on.

    Args:
        client: Has the address of the server as base URL, and the token.
        write: Writes a line.
    """

    def __init__(self, client: httpx.AsyncClient, write: Callable[[str], None]) -> None:
        self._client, self._write = client, write
        self._session: dict[str, str] = {}
        self._calls: dict[str | int, anyio.CancelScope] = {}

    async def run(self, lines: AsyncIterable[str]) -> None:
        """Pass on all lines. At their end, requests that are under way are dropped."""
        async with anyio.create_task_group() as group:
            async for line in lines:
                if line.strip():
                    await self._receive(line, group)
            group.cancel_scope.cancel()

    async def _receive(self, line: str, group: TaskGroup) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("id", ""), str | int):
            self._fail(None, PARSE_ERROR, "A line must be one JSON-RPC message")
        elif message.get("method") == "initialize":
            # All other requests need its session.
            await self._pass_on(message)
        elif message.get("method") == CANCELLATION and _is_modern(message, self._session):
            # Closing the response cancels the call.
            self._cancel(message.get("params"))
        else:
            group.start_soon(self._pass_on, message)

    def _cancel(self, params: object) -> None:
        request_id = params.get("requestId") if isinstance(params, dict) else None
        if isinstance(request_id, str | int) and (call := self._calls.pop(request_id, None)) is not None:
            call.cancel()

    async def _pass_on(self, message: Message) -> None:
        request_id = message.get("id") if "method" in message else None
        with anyio.CancelScope() as call:
            if request_id is not None:
                self._calls[request_id] = call
            try:
                await self._exchange(message)
            except (httpx.HTTPError, ValueError) as error:
                # Messages without an id get no answer.
                if request_id is not None:
                    text = f"No response of the server ({type(error).__name__}: {error})"
                    self._fail(request_id, INTERNAL_ERROR, text)
            finally:
                if request_id is not None:
                    self._calls.pop(request_id, None)

    async def _exchange(self, message: Message) -> None:
        progress = _Progress(message.get("id"))
        body = json.dumps(message)
        try:
            async with self._client.stream(
                "POST", "/mcp", content=body, headers=self._build_headers(message)
            ) as response:
                if session := response.headers.get(SESSION_HEADER):
                    self._session = {SESSION_HEADER: session}
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    self._write_body(message, response.status_code, await response.aread())
                    return
                await self._write_events(response, progress)
        except httpx.TransportError:
            if progress.event_id is None:
                raise
        await self._resume(message, progress)

    async def _resume(self, message: Message, progress: _Progress) -> None:
        """Continue a response that has ended without an answer, as that of a server that stops."""
        retries = 0
        while not progress.is_answered and progress.event_id is not None and retries < RETRIES:
            await anyio.sleep(RETRY_SECONDS)
            retries += 1
            before = progress.event_id
            headers = {**self._build_headers(message), RESUME_HEADER: before, "Accept": "text/event-stream"}
            with suppress(httpx.TransportError):
                async with self._client.stream("GET", "/mcp", headers=headers) as response:
                    if response.is_success:
                        await self._write_events(response, progress)
            if progress.event_id != before:
                retries = 0
        if not progress.is_answered:
            self._fail(message.get("id"), INTERNAL_ERROR, "The response of the server has ended early")

    async def _write_events(self, response: httpx.Response, progress: _Progress) -> None:
        """Write the messages of a response, up to the answer."""
        async for event in EventSource(response).aiter_sse():
            progress.event_id = event.id or progress.event_id
            if event.data:
                self._write(event.data)
                found = json.loads(event.data)
                if "method" not in found and found.get("id") == progress.request_id:
                    progress.is_answered = True
                    return

    def _build_headers(self, message: Message) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **self._session}
        method, params = message.get("method"), message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        version = meta.get(VERSION_META) if isinstance(meta, dict) else None
        if not (isinstance(version, str) and isinstance(method, str) and isinstance(params, dict)):
            return headers
        if not (version.isascii() and method.isascii()):
            # No header can have them; the server refuses the request.
            return headers
        headers |= {VERSION_HEADER: version, METHOD_HEADER: method}
        named = params.get(NAME_MEMBERS.get(method, ""))
        if isinstance(named, str):
            headers[NAME_HEADER] = f"=?base64?{base64.b64encode(named.encode(errors='replace')).decode()}?="
        return headers

    def _write_body(self, message: Message, status: int, body: bytes) -> None:
        try:
            answer = json.loads(body) if body else None
        except ValueError:
            answer = None
        if "id" not in message or "method" not in message:
            return
        if isinstance(answer, dict) and "jsonrpc" in answer:
            # The server could not read the id of a message that is not valid.
            self._write(json.dumps({**answer, "id": message["id"]}))
        else:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            self._fail(message["id"], INTERNAL_ERROR, f"The server answered {status}: {detail or 'no details'}")

    def _fail(self, request_id: str | int | None, code: int, text: str) -> None:
        self._write(json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}))


def _is_modern(message: Message, session: dict[str, str]) -> bool:
    """Whether a message has the revision without sessions."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return not session or (isinstance(meta, dict) and VERSION_META in meta)


async def _read_lines() -> AsyncIterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Whatever the locale is: basic/transports, stdio.
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    # A thread reads, since standard input may be a file, which no event loop can wait for.
    async for line in anyio.wrap_file(sys.stdin):
        yield line


async def run_bridge(url: str, token: str | None) -> None:
    """Pass the lines of standard input on until it ends."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT) as client:
        await McpBridge(client, write_output).run(_read_lines())
