"""Pages of allowed origins can read; `*` never allows cookies."""

from __future__ import annotations

import logging
from collections.abc import Callable

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints.tickets import TICKETS_PATH
from stream_server.settings import Settings
from support.raw_connection import UPGRADE, open_raw, request
from support.server import RunningServer, running_server
from support.streams import stream_path
from support.waiting import eventually_async

APP, EVIL = "https://app.example.com", "https://evil.example.com"

PREFLIGHT = "Access-Control-Request-Method: POST"

MALFORMED = (
    *("http://[", "http://[::1", "http://]", "http://[::1]a", "http://[v1.x", "http://a:b", "http://a:99999999"),
    *(
        "http://a:-1",
        "http://a:\xb2",
        "http://\xff\xfe",
        "http://\u2100.example",
        "http://",
        "://",
        "",
        "null",
        "*",
        "\t",
    ),
)
"""Values of `Origin` that no browser sends, but for `null`; some can't be parsed."""


@pytest.mark.parametrize(("origin", "allowed"), [(APP, True), (EVIL, False), ("null", False), (f"{APP}.evil", False)])
async def test_only_allowed_origins_can_read(
    settings: Callable[..., Settings], run: RunKey, origin: str, *, allowed: bool
) -> None:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with (
        running_server(settings(cors_origins=(APP,))) as server,
        httpx.AsyncClient(base_url=server.url, headers={"Origin": origin}) as client,
    ):
        await eventually_async(lambda: server.hub.is_live)
        preflight = await client.options(TICKETS_PATH, headers=headers)
        read = await client.get(f"{stream_path(run).removesuffix('stream')}result?timeout=0")
        ticket = await client.post(TICKETS_PATH, json={"paths": [stream_path(run)]})
        refused = await client.get(stream_path(run, "?until=never"))
    assert (preflight.status_code == 200) is allowed
    assert ticket.status_code == (201 if allowed else 403)
    granted = [answer.headers.get("access-control-allow-origin") for answer in (preflight, read, ticket, refused)]
    assert granted == [APP if allowed else None] * 4


async def test_no_origin_can_read_by_default(settings: Callable[..., Settings], run: RunKey) -> None:
    headers = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        await eventually_async(lambda: server.hub.is_live)
        preflight = await client.options(TICKETS_PATH, headers=headers)
        async with client.stream("GET", stream_path(run), headers={"Origin": APP}) as response:
            answers = [preflight, response]
    assert [answer.status_code for answer in answers] == [405, 200]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


async def test_all_origins_are_never_allowed_with_cookies(settings: Callable[..., Settings], run: RunKey) -> None:
    async with (
        running_server(settings(cors_origins=("*",))) as server,
        httpx.AsyncClient(base_url=server.url, headers={"Origin": EVIL}) as client,
    ):
        await eventually_async(lambda: server.hub.is_live)
        result = f"{stream_path(run).removesuffix('stream')}result?timeout=0"
        plain, with_cookie = await client.get(result), await client.get(result, headers={"Cookie": "_token=x"})
    assert plain.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in {**plain.headers, **with_cookie.headers}
    assert with_cookie.status_code == 403


async def test_each_stream_has_the_headers_for_its_origin(settings: Callable[..., Settings], run: RunKey) -> None:
    cases = [("", "keep-alive"), (APP, "keep-alive"), (EVIL, "keep-alive"), ("", "close"), (APP, "close")]
    heads = []
    async with (
        running_server(settings(cors_origins=(APP,))) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await eventually_async(lambda: server.hub.is_live)
        for origin, connection in 2 * cases:
            headers = {"Connection": connection, **({"Origin": origin} if origin else {})}
            async with client.stream("GET", stream_path(run), headers=headers) as response:
                heads.append(response.headers)
    for head, (origin, connection) in zip(heads, 2 * cases, strict=True):
        assert head.get("access-control-allow-origin") == (APP if origin == APP else None)
        assert head.get("access-control-allow-credentials") == ("true" if origin else None)
        assert ("close" in head["connection"]) == (connection == "close")
        assert head["vary"] == "Origin"
        assert head["content-type"].startswith("text/event-stream")
        assert head["transfer-encoding"] == "chunked"
        assert "date" in head


async def _status(server: RunningServer, path: str, *headers: str, method: str = "GET", host: str = "localhost") -> int:
    body = b"{}" if method == "POST" else b""
    data = request(path, "Connection: close", *headers, method=method, body=body)
    async with open_raw(server.url) as connection:
        await connection.send(data.replace(b"Host: localhost", f"Host: {host}".encode()))
        answer = await connection.read_response()
    if answer.status == 403:
        assert answer.problem["title"] == "Foreign origin"
    return answer.status


@pytest.mark.parametrize(("named", "in_advance"), [(APP, 400), ("*", 200)])
async def test_a_malformed_origin_is_not_allowed(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture, named: str, in_advance: int
) -> None:
    found = {}
    async with running_server(settings(cors_origins=(named,), allowed_hosts=("*",))) as server:
        await eventually_async(lambda: server.hub.is_live)
        for origin in MALFORMED:
            # With cookies, because requests without cookies are allowed from all origins where `*` is set.
            headers = f"Origin: {origin}", "Cookie: _token=a"
            for host in ("here", "", "[", origin.partition("://")[2]):
                found[origin, host] = (
                    await _status(server, TICKETS_PATH, *headers, method="POST", host=host),
                    await _status(server, stream_path(run), *headers, host=host),
                    await _status(server, stream_path(run), *headers, *UPGRADE[1:], host=host),
                    await _status(server, "/api/v2/stream", *headers, *UPGRADE[1:], host=host),
                    await _status(server, TICKETS_PATH, *headers, PREFLIGHT, method="OPTIONS", host=host),
                )
    assert found == dict.fromkeys(found, (403, 403, 403, 403, in_advance))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_malformed_host_is_no_server_error(
    settings: Callable[..., Settings], run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    cases = {
        f"{stream_path(run).removesuffix('stream')}result?timeout=0": 202,
        "/api/v2/stream/session": 200,
        "/nowhere": 404,
        TICKETS_PATH: 405,
    }
    async with running_server(
        settings(cors_origins=(APP,), trusted_proxies=("127.0.0.1",), allowed_hosts=("*",))
    ) as server:
        await eventually_async(lambda: server.hub.is_live)
        for host in ("", "[", "[::1", "]", "a:b", "a:99999999", "a b", "http://[", "\xff"):
            passed_on = f"X-Forwarded-Host: {host}", f"X-Forwarded-For: {host}", f"X-Forwarded-Proto: {host}"
            headers = *passed_on, f"Forwarded: for={host};host={host}", f"Referer: http://{host}/"
            assert {path: await _status(server, path, *headers, host=host) for path in cases} == cases, host
            assert await _status(server, "/nowhere", *headers, *UPGRADE[1:], host=host) == 404, host
            assert await _status(server, TICKETS_PATH, *headers, method="POST", host=host) == 422, host
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


OPENAI = "authorization,content-type,user-agent,x-stainless-retry-count,x-stainless-lang,x-stainless-timeout"
MCP = "authorization,content-type,mcp-method,mcp-name,mcp-protocol-version,mcp-session-id,last-event-id"
TRACING = "authorization,traceparent,tracestate,baggage,sentry-trace,x-requested-with,cache-control"


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        (TICKETS_PATH, "POST", TRACING, 200),
        (stream_path(RunKey("chat", "r")), "GET", TRACING.upper(), 200),
        ("/v1/chat/completions", "POST", OPENAI, 200),
        ("/mcp", "POST", MCP, 200),
        ("/api/v2/stream/session", "DELETE", "content-type", 200),
        (TICKETS_PATH, "POST", "x-request-id", 200),
        (TICKETS_PATH, "POST", "x-other", 400),
        (TICKETS_PATH, "PATCH", "authorization", 400),
    ],
)
async def test_pages_of_allowed_origins_may_send_headers_of_libraries(
    settings: Callable[..., Settings], path: str, method: str, headers: str, status: int
) -> None:
    preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    configured = settings(cors_origins=(APP,), cors_headers="X-Request-ID")
    async with running_server(configured) as server, httpx.AsyncClient(base_url=server.url) as client:
        allowed = await client.options(path, headers={"Origin": APP, **preflight})
        foreign = await client.options(path, headers={"Origin": EVIL, **preflight})
    assert (allowed.status_code, foreign.status_code) == (status, 400)
    assert allowed.headers.get("access-control-allow-origin") == APP
    assert "access-control-allow-origin" not in foreign.headers
