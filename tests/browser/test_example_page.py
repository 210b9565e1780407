"""The example page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from playwright.async_api import expect

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.chromium import connect_to_chromium
from support.server import running_server
from support.static_files import serve_directory
from support.waiting import eventually_async

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


async def test_the_page_shows_a_run_live(
    chromium_address: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    with serve_directory(EXAMPLES) as origin:
        async with (
            running_server(settings(cors_origins=(origin,))) as server,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            page = await browser.new_page()
            query = urlencode({"server": server.url, "dag_id": run.dag_id, "run_id": run.run_id})
            await page.goto(f"{origin}/page.html?{query}")
            await expect(page.locator("h1")).to_have_text(run.run_id)
            await expect(page.locator("#outcome")).to_have_text("waiting …")

            await airflow.start_task(run, "ask")
            await expect(page.locator("table")).to_contain_text("askrunning")
            await airflow.run_task(run, "answer", {"text": "because"})
            await expect(page.locator("#outcome")).to_have_text('{"answer":{"text":"because"}}')
            # The page closes its source at the end; no client is left, and none reconnects.
            await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_a_page_of_another_origin_gets_nothing(
    chromium_address: str, settings: Callable[..., Settings], run: RunKey
) -> None:
    with serve_directory(EXAMPLES) as origin:
        async with (
            running_server(settings(cors_origins=("https://app.example.com",))) as server,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            page = await browser.new_page()
            query = urlencode({"server": server.url, "dag_id": run.dag_id, "run_id": run.run_id})
            async with page.expect_console_message(lambda message: "CORS policy" in message.text):
                await page.goto(f"{origin}/page.html?{query}")
            await expect(page.locator("h1")).to_have_text("")
