"""Pages of other origins get what they were allowed to, by name, and never everybody with cookies."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from stream_server.run_state import RunKey
from stream_server.settings import Settings
from stream_server.transports.tickets import PATH
from support.server import running_server
from support.streams import stream_path
from support.waiting import eventually_async

APP, EVIL = "https://app.example.com", "https://evil.example.com"


@pytest.mark.parametrize(("origin", "allowed"), [(APP, True), (EVIL, False), ("null", False), (f"{APP}.evil", False)])
async def test_only_named_origins_may_read(
    settings: Callable[..., Settings], run: RunKey, origin: str, *, allowed: bool
) -> None:
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with (
        running_server(settings(cors_origins=(APP,))) as server,
        httpx.AsyncClient(base_url=server.url, headers={"Origin": origin}) as client,
    ):
        await eventually_async(lambda: server.hub.live)
        preflight = await client.options(PATH, headers=asking)
        read = await client.get(f"{stream_path(run).removesuffix('stream')}result?timeout=0")
        ticket = await client.post(PATH, json={"paths": [stream_path(run)]})
        refused = await client.get(stream_path(run, "?until=never"))
    assert (preflight.status_code == 200) is allowed
    assert ticket.status_code == (201 if allowed else 403)
    granted = [answer.headers.get("access-control-allow-origin") for answer in (preflight, read, ticket, refused)]
    assert granted == [APP if allowed else None] * 4


async def test_where_no_origin_is_named_none_may_read(settings: Callable[..., Settings], run: RunKey) -> None:
    asking = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        await eventually_async(lambda: server.hub.live)
        preflight = await client.options(PATH, headers=asking)
        async with client.stream("GET", stream_path(run), headers={"Origin": APP}) as response:
            answers = [preflight, response]
    assert [answer.status_code for answer in answers] == [405, 200]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


async def test_everybody_is_never_allowed_with_cookies(settings: Callable[..., Settings], run: RunKey) -> None:
    async with (
        running_server(settings(cors_origins=("*",))) as server,
        httpx.AsyncClient(base_url=server.url, headers={"Origin": EVIL}) as client,
    ):
        await eventually_async(lambda: server.hub.live)
        result = f"{stream_path(run).removesuffix('stream')}result?timeout=0"
        plain, with_cookie = await client.get(result), await client.get(result, headers={"Cookie": "_token=x"})
    assert plain.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in {**plain.headers, **with_cookie.headers}
    assert with_cookie.status_code == 403


async def test_each_stream_has_the_head_that_is_meant_for_it(settings: Callable[..., Settings], run: RunKey) -> None:
    asked = [("", "keep-alive"), (APP, "keep-alive"), (EVIL, "keep-alive"), ("", "close"), (APP, "close")]
    heads = []
    async with (
        running_server(settings(cors_origins=(APP,))) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await eventually_async(lambda: server.hub.live)
        for origin, connection in 2 * asked:
            headers = {"Connection": connection, **({"Origin": origin} if origin else {})}
            async with client.stream("GET", stream_path(run), headers=headers) as response:
                heads.append(response.headers)
    for head, (origin, connection) in zip(heads, 2 * asked, strict=True):
        assert head.get("access-control-allow-origin") == (APP if origin == APP else None)
        assert head.get("access-control-allow-credentials") == ("true" if origin else None)
        assert ("close" in head["connection"]) == (connection == "close")
        assert head["vary"] == "Origin"
        assert head["content-type"].startswith("text/event-stream")
        assert head["transfer-encoding"] == "chunked"
        assert "date" in head
