"""Third-party clients in a real browser: its own `EventSource`, and `@microsoft/fetch-event-source`."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.async_api import Page

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support import node
from support.airflow_sql import AirflowSql
from support.airflow_stub_fixtures import ANSWER
from support.chromium import connect_to_chromium
from support.server import running_server
from support.static_files import serve_directory
from support.streams import EVENT_NAMES, Frame, states, stream_path, types
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

EACH_STATE = ["scheduled", "queued", "running", "success"]


async def received(page: Page, kind: str) -> list[Frame]:
    """Wait until the client has received a frame of a type; return all frames so far."""
    await page.wait_for_function(f"window.received?.some((data) => JSON.parse(data).type === '{kind}')")
    return [json.loads(data) for data in await page.evaluate("() => window.received")]


@pytest.mark.parametrize("client", ["EventSource", "fetch-event-source"])
async def test_browsers_follow_a_run_across_a_cut_connection_to_its_end(
    chromium_address: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey, client: str
) -> None:
    with serve_directory(node.installed_clients()) as origin:
        async with (
            running_server(settings(cors_origins=(origin,))) as server,
            TcpProxy.listen(urlsplit(server.url).port) as proxy,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            page = await browser.new_page()
            url = f"http://127.0.0.1:{proxy.port}{stream_path(run)}"
            query = urlencode({"client": client, "url": url, "name": EVENT_NAMES}, doseq=True)
            await page.goto(f"{origin}/page.html?{query}")
            await received(page, "snapshot")
            await airflow.start_task(run, "ask")
            await page.wait_for_function(
                "window.received.filter((data) => JSON.parse(data).type === 'task').length === 3"
            )
            await proxy.cut_connections()
            await airflow.set_task(run, "ask", "success")
            await received(page, "resumed")
            await airflow.run_task(run, "answer", ANSWER)
            frames = await received(page, "closed")
    assert states(frames, "ask") == EACH_STATE
    assert states(frames, "answer")[:3] == EACH_STATE[:3]
    assert types(frames)[-3:] == ["result", "end", "closed"]
    assert frames[-3]["results"] == {"answer": ANSWER}
