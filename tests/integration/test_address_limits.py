"""Limits by address, for what needs no credential."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import psutil
import pytest

from stream_server.settings import Settings
from support.raw_connection import UPGRADE, RawResponse, open_raw, request
from support.server import running_server
from support.skipping import skip_or_fail
from support.waiting import eventually_async

pytestmark = pytest.mark.usefixtures("no_tracebacks")

FORWARDED = "X-Forwarded-For: 203.0.113.7"


def own_address() -> str:
    """Return an address of this machine that is no loopback address."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        skip_or_fail("this machine has loopback addresses only")
    return found[0]


async def _get(url: str, path: str, *headers: str) -> RawResponse:
    async with open_raw(url) as client:
        await client.send(request(path, "Connection: close", *headers))
        return await client.read_response()


@pytest.mark.parametrize("held", [request("/nowhere")[:-2], request("/api/v2/stream", *UPGRADE)])
async def test_connections_of_an_address_are_limited(settings: Callable[..., Settings], held: bytes) -> None:
    address = own_address()
    options = {"host": address, "i_know_that_everybody_can_read_everything": True, "max_connections_per_address": 20}
    async with running_server(settings(**options)) as server, AsyncExitStack() as stack:
        await eventually_async(lambda: server.hub.is_live)
        url = server.url.replace("127.0.0.1", address)
        for _ in range(20):
            await (await stack.enter_async_context(open_raw(url))).send(held)
        refused = await _get(url, "/nowhere")
        assert refused.status == 429
        assert "STREAM_SERVER_MAX_CONNECTIONS_PER_ADDRESS" in refused.problem["detail"]
        assert refused.headers["retry-after"] == "5"
        assert (await _get(url, "/health")).status == 200
        for _ in range(2):
            await (await stack.enter_async_context(open_raw(url))).send(held)
        async with open_raw(url) as aborted:
            assert await aborted.read_to_end() == b""
        await stack.aclose()
        for _ in range(30):
            await _get(url, "/health")
        assert (await _get(url, "/nowhere")).status == 404


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/", "/nowhere", "/api/v2/stream/session"])
async def test_requests_of_an_address_are_limited_per_second(settings: Callable[..., Settings], path: str) -> None:
    configured = settings(trusted_proxies=("127.0.0.1",), max_joins_per_second=0.5)
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        statuses = [(await _get(server.url, path, FORWARDED)).status for _ in range(7)]
        assert statuses[0] == (404 if path == "/nowhere" else 200)
        assert statuses[5:] == [429, 429]
        assert [(await _get(server.url, probe, FORWARDED)).status for probe in ("/health", "/ready")] == [200, 200]
        # Others are not affected.
        assert (await _get(server.url, path, "X-Forwarded-For: 203.0.113.8")).status == statuses[0]


async def test_malformed_requests_are_not_logged(
    settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(settings()) as server:
        for data in (
            b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/9.9\r\n\r\n",
            b"hello\r\n\r\n",
            request("/", "Connection: Upgrade", "Upgrade: h2c"),
            request("/", "X: " + "x" * 40_000),
        ):
            async with open_raw(server.url) as client:
                await client.send(data)
                await client.reader.read(1)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
