"""The TypeScript client in a real browser, also with a connection that tabs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.async_api import BrowserContext, Page, expect

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support import typescript
from support.airflow_sql import AirflowSql
from support.airflow_stub_fixtures import ANSWER
from support.chromium import connect_to_chromium
from support.server import running_server
from support.static_files import serve_directory
from support.streams import states
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async


async def tab(context: BrowserContext, origin: str, run: RunKey, **client: object) -> Page:
    """Open a page that follows a run."""
    query = urlencode(
        {"client": json.dumps(client), "dagId": run.dag_id, "runId": run.run_id},
    )
    page = await context.new_page()
    await page.goto(f"{origin}/client/test/follow.html?{query}")
    await expect(page.locator("output")).to_contain_text("live")
    return page


async def test_tabs_share_one_connection_and_another_tab_takes_over(
    chromium_address: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    typescript.build_client()
    with serve_directory(typescript.WEB) as origin:
        async with (
            running_server(settings(cors_origins=(origin,))) as server,
            TcpProxy.listen(urlsplit(server.url).port) as proxy,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            context = await browser.new_context()
            url = f"http://127.0.0.1:{proxy.port}"
            leader, *others = [await tab(context, origin, run, baseUrl=url, shareAs="me") for _ in range(10)]
            assert proxy.accepted == 1
            await airflow.start_task(run, "ask")
            for page in (leader, *others):
                await expect(page.locator("output")).to_contain_text("ask running")
            await leader.close()
            await airflow.set_task(run, "ask", "success")
            await airflow.run_task(run, "answer", ANSWER)
            await airflow.set_run(run, "success")
            for page in others:
                await expect(page.locator("output")).to_contain_text("ended")
                frames = await page.evaluate("() => window.received")
                assert states(frames, "ask") == ["scheduled", "queued", "running", "success"]
                assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": ANSWER}]
            assert proxy.accepted == 2


@pytest.mark.parametrize("transport", ["sse", "websocket", "multiplex"])
async def test_a_page_follows_a_run_across_a_cut_connection(
    chromium_address: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey, transport: str
) -> None:
    typescript.build_client()
    with serve_directory(typescript.WEB) as origin:
        async with (
            running_server(settings(cors_origins=(origin,))) as server,
            TcpProxy.listen(urlsplit(server.url).port) as proxy,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            context = await browser.new_context()
            page = await tab(context, origin, run, baseUrl=f"http://127.0.0.1:{proxy.port}", transport=transport)
            await airflow.start_task(run, "ask")
            await expect(page.locator("output")).to_contain_text("ask running")
            await proxy.cut_connections()
            await airflow.run_task(run, "answer", ANSWER)
            await airflow.set_run(run, "success")
            await expect(page.locator("output")).to_contain_text("ended")
            frames = await page.evaluate("() => window.received")
    assert states(frames, "ask") == ["scheduled", "queued", "running"]
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": ANSWER}]
