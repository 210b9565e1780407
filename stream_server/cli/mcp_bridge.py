"""`stream-server mcp`: the server's `/mcp` over standard input and output, for agents that start a program.

Each line is a message (basic/transports, stdio). A request becomes an HTTP request, and the messages of its response
become lines. Requests run side by side.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeAlias

import anyio
import httpx
from anyio.abc import TaskGroup
from httpx_sse import EventSource

from stream_server.cli.standard_streams import write_output

VERSION_META = "io.modelcontextprotocol/protocolVersion"
SESSION_HEADER, VERSION_HEADER = "Mcp-Session-Id", "MCP-Protocol-Version"
METHOD_HEADER, NAME_HEADER, RESUME_HEADER = "Mcp-Method", "Mcp-Name", "Last-Event-ID"
NAME_MEMBERS = {"tools/call": "name", "resources/read": "uri"}
"""Member that the header `Mcp-Name` repeats, by method."""

TIMEOUT = httpx.Timeout(10.0, read=None)
RETRIES = 10
"""How often a response is resumed without any event in between."""

RETRY_SECONDS = 0.5

PARSE_ERROR, INTERNAL_ERROR = -32700, -32603
CANCELLATION = "notifications/cancelled"

Message: TypeAlias = dict[str, Any]


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
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._fail(None, PARSE_ERROR, "A line must be one JSON object")
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
            except httpx.HTTPError as error:
                self._fail(request_id, INTERNAL_ERROR, f"No response of the server ({type(error).__name__}: {error})")
            finally:
                if request_id is not None:
                    self._calls.pop(request_id, None)

    async def _exchange(self, message: Message) -> None:
        headers, body = self._build_headers(message), json.dumps(message)
        event_id: str | None = None
        async with self._client.stream("POST", "/mcp", content=body, headers=headers) as response:
            if session := response.headers.get(SESSION_HEADER):
                self._session = {SESSION_HEADER: session}
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                self._write_body(message, response.status_code, await response.aread())
                return
            is_answered, event_id = await self._write_events(response, message)
        await self._resume(message, event_id, is_answered=is_answered)

    async def _resume(self, message: Message, event_id: str | None, *, is_answered: bool) -> None:
        """Continue a response that has ended without an answer, as that of a server that stops."""
        retries = 0
        while not is_answered and event_id is not None and retries < RETRIES:
            await anyio.sleep(RETRY_SECONDS)
            retries += 1
            headers = {**self._build_headers(message), RESUME_HEADER: event_id, "Accept": "text/event-stream"}
            async with self._client.stream("GET", "/mcp", headers=headers) as response:
                if response.is_success:
                    before = event_id
                    is_answered, event_id = await self._write_events(response, message, event_id)
                    retries = retries if event_id == before else 0
        if not is_answered:
            self._fail(message.get("id"), INTERNAL_ERROR, "The response of the server has ended early")

    async def _write_events(
        self, response: httpx.Response, message: Message, event_id: str | None = None
    ) -> tuple[bool, str | None]:
        """Write the messages of a response. Return whether the answer was among them, and the id of the last event."""
        async for event in EventSource(response).aiter_sse():
            event_id = event.id or event_id
            if event.data:
                self._write(event.data)
                found = json.loads(event.data)
                if "method" not in found and found.get("id") == message.get("id"):
                    return True, event_id
        return False, event_id

    def _build_headers(self, message: Message) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **self._session}
        method, params = message.get("method"), message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        version = meta.get(VERSION_META) if isinstance(meta, dict) else None
        if not (isinstance(version, str) and isinstance(method, str) and isinstance(params, dict)):
            return headers
        headers |= {VERSION_HEADER: version, METHOD_HEADER: method}
        named = params.get(NAME_MEMBERS.get(method, ""))
        if isinstance(named, str):
            headers[NAME_HEADER] = f"=?base64?{base64.b64encode(named.encode()).decode()}?="
        return headers

    def _write_body(self, message: Message, status: int, body: bytes) -> None:
        try:
            answer = json.loads(body) if body else None
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "jsonrpc" in answer:
            self._write(json.dumps(answer))
        elif "method" in message and "id" in message:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            self._fail(message["id"], INTERNAL_ERROR, f"The server answered {status}: {detail or 'no details'}")

    def _fail(self, request_id: str | int | None, code: int, text: str) -> None:
        self._write(json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}))


def _is_modern(message: Message, session: dict[str, str]) -> bool:
    """Whether the client speaks a revision without sessions."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return not session or (isinstance(meta, dict) and VERSION_META in meta)


async def _read_lines() -> AsyncIterator[str]:
    # A thread reads, since standard input may be a file, which no event loop can wait for.
    async for line in anyio.wrap_file(sys.stdin):
        yield line


async def run_bridge(url: str, token: str | None) -> None:
    """Pass the lines of standard input on until it ends."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT) as client:
        await McpBridge(client, write_output).run(_read_lines())
