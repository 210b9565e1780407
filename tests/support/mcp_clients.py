"""The official client of the Model Context Protocol, and what it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ResourceLink, TextContent

REVISIONS = ("legacy", "2026-07-28")


@asynccontextmanager
async def client_of(url: str, token: str, revision: str, **options: Any) -> AsyncIterator[Client]:
    """Open a client. It must be closed by the task that has opened it."""
    headers, limits = {"Authorization": f"Bearer {token}"}, httpx2.Limits(max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=15, limits=limits) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=revision, **options) as client,
    ):
        yield client


def text_of(result: CallToolResult) -> str:
    text: str
    (text,) = [one.text for one in result.content if isinstance(one, TextContent)]
    return text


def link_of(result: CallToolResult) -> str:
    (uri,) = [str(one.uri) for one in result.content if isinstance(one, ResourceLink)]
    return uri
