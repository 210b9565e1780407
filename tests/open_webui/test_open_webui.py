"""Open WebUI in a real browser asks a DAG."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, async_playwright, expect

from stream_server.http.openai import endpoints
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import wait_for_cancellation_decision
from support.chat_runs import ask_human, begin_answer, fail_answer, retry_answer
from support.chromium import QUIET
from support.open_webui import open_webui
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions, refusal
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

SECONDS = 60_000
KEY = CallerPermissions().token
SCREENSHOTS = Path(__file__).with_name("screenshots")


class Chat:
    """A chat of Open WebUI."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def ask(self, text: str) -> None:
        await self.page.locator("#chat-input").click(timeout=SECONDS)
        await self.page.keyboard.type(text)
        await self.page.keyboard.press("Enter")

    async def expect_text(self, text: str) -> None:
        await expect(self.page.get_by_text(text).last).to_be_visible(timeout=SECONDS)

    async def save_screenshot(self, name: str) -> None:
        """Save a screenshot for people to review."""
        SCREENSHOTS.mkdir(exist_ok=True)
        await self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@asynccontextmanager
async def open_page(chromium: str, url: str) -> AsyncIterator[Chat]:
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium, args=QUIET) as browser,
    ):
        page = await browser.new_page(viewport={"width": 1200, "height": 900})
        await page.goto(url)
        chat = Chat(page)
        try:
            await expect(page.locator("#chat-input")).to_be_visible(timeout=SECONDS)
            # Notes about the version, at the first visit.
            note = page.get_by_role("button", name=re.compile("let's go", re.IGNORECASE))
            await note.or_(page.locator("#chat-input")).first.wait_for()
            if await note.count():
                await note.click()
            yield chat
        except BaseException:
            await chat.save_screenshot("failed")
            raise


@pytest.fixture
async def server(
    settings: Callable[..., Settings], airflow: AirflowSql, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningServer]:
    """A server with the models `chat` and `secret`, of which the key may only use `chat`."""
    monkeypatch.setattr(endpoints, "GRACE", 0.02)
    await airflow.add_dag("secret", {"answer": ()}, {})
    for dag_id in ("chat", "secret"):
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, 'chat')", dag_id)
    stub.instead = StubPermissions(CallerPermissions(token=KEY, of_dag={"secret": refusal(403, "Forbidden")}))
    async with running_server(settings(airflow_url=stub.url)) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


async def test_open_webui_asks_a_dag(
    chromium: str,
    server: RunningServer,
    settings: Callable[..., Settings],
    airflow: AirflowSql,
    stub: AirflowStub,
    tmp_path: Path,
) -> None:
    # One test of all steps: the start of Open WebUI takes longer than they do.
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(TcpProxy.listen(urlsplit(server.url).port))
        url = await stack.enter_async_context(open_webui(tmp_path, f"http://127.0.0.1:{proxy.port}/v1", KEY))
        chat = await stack.enter_async_context(open_page(chromium, url))
        await choose_and_ask(chat, airflow, stub)
        await ask_again_and_stop(chat, airflow, stub)
        await ask_a_failing_dag(chat, airflow, stub)
        await retry_and_answer_a_human(chat, airflow, stub)
        other = await stack.enter_async_context(running_server(settings(airflow_url=stub.url)))
        await drain_and_lose_the_connection(chat, airflow, stub, server, proxy, other)


async def choose_and_ask(chat: Chat, airflow: AirflowSql, stub: AirflowStub) -> None:
    await chat.page.locator("#model-selector-model-button").click(timeout=SECONDS)
    await expect(chat.page.get_by_role("option", name="Select chat model")).to_be_visible(timeout=SECONDS)
    await expect(chat.page.get_by_role("option", name="Select secret model")).to_have_count(0)
    await chat.page.get_by_role("option", name="Select chat model").click()
    await chat.ask("Why is it so?")
    key = await begin_answer(airflow, stub, {"progress": 0.5, "text": "writing"}, "Be")
    await chat.expect_text("answer: writing")
    await chat.expect_text("Be")
    await chat.save_screenshot("streaming")
    await airflow.emit_output(key, "answer", 2, "cause")
    await airflow.push(key, "answer", "Because of that.")
    await chat.expect_text("Because of that.")
    # The title comes from the server, without a run; so do tags and follow-up questions.
    await expect(chat.page).to_have_title(re.compile(r"Why is it so\?"), timeout=SECONDS)
    await chat.page.reload()
    await chat.expect_text("Because of that.")
    assert len(stub.triggers) == 1


async def ask_again_and_stop(chat: Chat, airflow: AirflowSql, stub: AirflowStub) -> None:
    await chat.ask("And now?")
    await eventually_async(lambda: len(stub.triggers) == 2, what="the second question triggers a run")
    assert stub.triggers[1].json["conf"] == {
        "message": "And now?",
        "history": [
            {"role": "user", "content": "Why is it so?"},
            {"role": "assistant", "content": "Because of that."},
        ],
    }
    await begin_answer(airflow, stub, "Never ends")
    await chat.expect_text("Never ends")
    await chat.page.get_by_role("button", name="Stop", exact=True).click()
    await eventually_async(lambda: stub.patches, what="the run is set to failed")
    assert stub.patches[0].json == {"state": "failed"}
    await wait_for_cancellation_decision()


async def ask_a_failing_dag(chat: Chat, airflow: AirflowSql, stub: AirflowStub) -> None:
    await chat.ask("Will it fail?")
    await eventually_async(lambda: len(stub.triggers) == 3, what="the third question triggers a run")
    await fail_answer(airflow, await begin_answer(airflow, stub, "I try"))
    await chat.expect_text("has no result: task failed (task 'answer')")
    await chat.save_screenshot("failed-run")


async def retry_and_answer_a_human(chat: Chat, airflow: AirflowSql, stub: AirflowStub) -> None:
    await chat.ask("Once more?")
    await eventually_async(lambda: len(stub.triggers) == 4, what="the fourth question triggers a run")
    key = await begin_answer(airflow, stub, "First text")
    await chat.expect_text("First text")
    await ask_human(airflow, key)
    await chat.expect_text("ask: asks Publish?")
    await airflow.answer_input(key, "ask", "Approve")
    await chat.expect_text("ask: was answered")
    await retry_answer(airflow, key, "Second text")
    await chat.expect_text("Second text")
    await expect(chat.page.get_by_text("First text").last).to_be_visible()
    await chat.save_screenshot("retried")


async def drain_and_lose_the_connection(
    chat: Chat, airflow: AirflowSql, stub: AirflowStub, server: RunningServer, proxy: TcpProxy, other: RunningServer
) -> None:
    await chat.ask("Do you stop?")
    await eventually_async(lambda: len(stub.triggers) == 5, what="the fifth question triggers a run")
    await begin_answer(airflow, stub, "Until the drain")
    await chat.expect_text("Until the drain")
    await server.hub.drain(5)
    await chat.expect_text("server")
    await chat.save_screenshot("drained")
    await proxy.switch_to(urlsplit(other.url).port)
    await eventually_async(lambda: other.hub.is_live)
    await chat.ask("Are you back?")
    await eventually_async(lambda: len(stub.triggers) == 6, what="the sixth question triggers a run")
    await begin_answer(airflow, stub, "Until the cut")
    await chat.expect_text("Until the cut")
    await proxy.cut_connections()
    await expect(chat.page.get_by_role("button", name="Stop", exact=True)).to_be_hidden(timeout=SECONDS)
    await chat.save_screenshot("cut")
    assert len(stub.triggers) == 6
