"""Below a path prefix, all URLs that the server writes have it, whether or not the proxy removes it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from pydantic import ValidationError
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.errors import SettingsError
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import WAIT, complete_run
from support.server import RunningServer, running_server
from support.streams import stream_path
from support.waiting import eventually_async

PREFIX = "/tools/airflow"
SESSION = "/api/v2/stream/session"
TICKETS = "/api/v2/stream/tickets"

pytestmark = pytest.mark.usefixtures("no_tracebacks")


@pytest.fixture
async def prefixed(settings: Callable[..., Settings], stub: AirflowStub) -> AsyncIterator[RunningServer]:
    """A server below a prefix, to which every return value is too large to be sent."""
    configured = settings(airflow_url=stub.url, auth="none", url_prefix=PREFIX, max_result_bytes=1)
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.mark.parametrize("sent", [PREFIX, ""], ids=["kept", "removed"])
async def test_urls_have_the_prefix(
    prefixed: RunningServer, stub: AirflowStub, airflow: AirflowSql, run: RunKey, sent: str
) -> None:
    stub.then = complete_run
    async with httpx.AsyncClient(base_url=prefixed.url + sent) as client:
        triggered = await client.post(WAIT, json={})
        streamed = await client.post(WAIT, json={}, headers={"Accept": "application/x-ndjson"})
        pending = await client.get(f"{stream_path(run).removesuffix('stream')}result?timeout=0")
        refused = await client.post(f"{WAIT}&unwrap=true", json={})
    paths = [
        triggered.headers["location"],
        triggered.headers["content-location"],
        streamed.headers["content-location"],
        pending.headers["location"],
        refused.headers["location"],
        triggered.json()["references"]["answer"]["href"],
        *re.findall(r'"href":"([^"]+)', streamed.text),
    ]
    assert len(paths) == 7
    assert {path[: len(PREFIX) + 8] for path in paths} == {f"{PREFIX}/api/v2/"}
    assert f"{PREFIX}/api/v2/" in refused.json()["detail"]
    async with httpx.AsyncClient(base_url=prefixed.url) as client:
        assert (await client.get(pending.headers["location"])).status_code == 202


@pytest.mark.parametrize("sent", [PREFIX, ""], ids=["kept", "removed"])
async def test_pages_tickets_and_cookies_have_the_prefix(prefixed: RunningServer, run: RunKey, sent: str) -> None:
    async with httpx.AsyncClient(base_url=prefixed.url + sent) as client:
        for path in ("/", "/chat", "/runs/chat/r1"):
            page = await client.get(path, headers={"Accept-Encoding": "br"})
            assert f'<meta name="url-prefix" content="{PREFIX}" />' in page.text
            links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
            assert links
            for link in links:
                assert link.startswith(f"{PREFIX}/")
                assert (await client.get(link.removeprefix(PREFIX))).status_code == 200
        signed_in = await client.post(SESSION, json={"username": "ada", "password": "right"})
        assert f"Path={PREFIX}/;" in signed_in.headers["set-cookie"]
        for path in (stream_path(run), PREFIX + stream_path(run)):
            ticket = (await client.post(TICKETS, json={"paths": [path]})).json()["ticket"]
            async with connect(
                f"{prefixed.url.replace('http', 'ws', 1)}{sent}{stream_path(run)}?ticket={ticket}", proxy=None
            ) as connection:
                assert json.loads(await connection.recv())["type"] == "snapshot"


async def test_only_the_whole_prefix_is_removed(prefixed: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=prefixed.url) as client:
        for path in (f"{PREFIX}s/health", "/tools/health", f"{PREFIX}{PREFIX}/health"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get(PREFIX)).status_code == 200


@pytest.mark.parametrize("prefix", ["airflow", "/airflow/", "/a b", "//", "/a?b", "https://example.com/a", '/"'])
def test_a_prefix_is_a_path(prefix: str) -> None:
    with pytest.raises((SettingsError, ValidationError)):
        Settings.load(database_url="postgresql://localhost/a", url_prefix=prefix)
