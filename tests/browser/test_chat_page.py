"""The chat page with a real Airflow in a real browser: answers as they arrive."""

from __future__ import annotations

import asyncio
import json
import signal

import httpx
from playwright.async_api import Page, expect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from support.airflow_version import HAS_AGENTS
from support.browser_session import BrowserSession, open_browser
from support.example_runs import wait_before_answer
from support.skipping import skip_or_fail

SECONDS = 60_000
CHAT = "/chat?dag_id=slow_chat"


def answer(count: int, before: int = 0) -> str:
    return " ".join([f"({before} before)", *map(str, range(count))])


async def send_message(page: Page, message: str) -> None:
    await page.get_by_label("Your message").fill(message)
    await page.keyboard.press("Enter")


async def wait_for(page: Page, word: str) -> None:
    await expect(page.locator(".by-dag .text").last).to_contain_text(word, timeout=SECONDS)


async def assert_complete(page: Page, whole: str) -> None:
    """Check that the answer is complete, and that each text shown before was a growing prefix of it."""
    await expect(page.locator(".by-dag[data-answer=complete]").last).to_contain_text(whole, timeout=SECONDS)
    seen = [text.strip() for text in json.loads(await page.evaluate("JSON.stringify(window.seen)"))]
    texts = [text for text in seen if text and whole.startswith(text[:10])]
    assert [text for text in texts if not whole.startswith(text)] == []
    assert texts == sorted(texts, key=len)
    assert len(texts) > 3, "the answer was not shown step by step"


async def test_an_answer_is_shown_as_it_arrives(browser: BrowserSession) -> None:
    page = await browser.open(CHAT)
    await send_message(page, "count 20")
    await wait_for(page, "3 4 5")
    await browser.save_screenshots(page, "chat-coming")
    assert await browser.accessibility_violations(page) == []
    await assert_complete(page, answer(20))
    await send_message(page, "count 4")
    await expect(page.locator(".by-dag[data-answer=complete]").last).to_contain_text(answer(4, 1), timeout=SECONDS)
    await browser.save_screenshots(page, "chat")


async def test_an_answer_survives_a_reload(browser: BrowserSession) -> None:
    page = await browser.open(CHAT)
    await send_message(page, "count 40")
    await wait_for(page, "3 4 5")
    await page.reload()
    await expect(page.locator(".by-dag .text")).to_contain_text("3 4 5")
    await assert_complete(page, answer(40))
    await page.reload()
    await expect(page.locator(".by-dag")).to_contain_text(answer(40))


async def test_a_killed_server_loses_no_word(browser: BrowserSession, auth_server: StreamServerProcess) -> None:
    browser.expects_cuts = True
    page = await browser.open(CHAT)
    await send_message(page, "count 250")
    await wait_for(page, "3 4 5")
    await asyncio.to_thread(auth_server.child.stop, end_signal=signal.SIGKILL)
    await expect(page.get_by_role("status")).to_have_text("Reconnecting…", timeout=SECONDS)
    await browser.save_screenshots(page, "chat-reconnecting")
    await asyncio.to_thread(auth_server.start)
    await expect(page.get_by_role("status")).to_have_text("Live", timeout=SECONDS)
    await expect(page.locator(".by-dag[data-answer=coming]")).to_be_visible()
    await assert_complete(page, answer(250))


async def test_a_failed_answer_is_shown_and_retried(browser: BrowserSession) -> None:
    page = await browser.open(CHAT)
    await send_message(page, "count 3 fail")
    await expect(page.get_by_role("alert")).to_contain_text("Task “answer” failed", timeout=SECONDS)
    await browser.save_screenshots(page, "chat-failed")
    await page.get_by_role("button", name="Retry").click()
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(page.get_by_role("alert")).to_contain_text("Task “answer” failed", timeout=SECONDS)
    await expect(page.locator(".by-user")).to_have_count(1)


async def test_an_answer_can_be_stopped(browser: BrowserSession, rest: AirflowRestClient) -> None:
    page = await browser.open(CHAT)
    await send_message(page, "count 500")
    await wait_for(page, "3 4 5")
    href = await page.get_by_role("link", name="View run").get_attribute("href")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".by-dag")).to_contain_text("Stopped.")
    assert href is not None
    state = await asyncio.to_thread(rest.wait_until_finished, "slow_chat", httpx.URL(href).path.rpartition("/")[2])
    assert state == "failed"


async def test_a_signed_out_user_signs_in_and_continues(
    chromium_address: str, auth_server: StreamServerProcess, stack: DemoStack
) -> None:
    async with open_browser(chromium_address, auth_server.url) as visitor:
        page = await visitor.open(CHAT)
        await expect(page.get_by_role("heading", name="Sign in to Airflow")).to_be_focused()
        await visitor.save_screenshots(page, "sign-in")
        assert await visitor.accessibility_violations(page) == []
        await sign_in(page, "wrong")
        await expect(page.get_by_role("alert")).to_contain_text("Wrong user name or password")
        await sign_in(page, "admin")
        await send_message(page, "count 60")
        await wait_for(page, "3 4 5")
        await log_out(stack.airflow_url, visitor)
        await expect(page.get_by_role("heading", name="Sign in to Airflow")).to_be_visible(timeout=SECONDS)
        await expect(page.locator(".by-dag .text")).to_contain_text("3 4 5")
        await sign_in(page, "admin")
        await assert_complete(page, answer(60))


async def sign_in(page: Page, password: str) -> None:
    await page.get_by_label("User name").fill("admin")
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Sign in").click()


async def log_out(airflow_url: str, browser: BrowserSession) -> None:
    """Have Airflow revoke the user's token, as a logout in another tab does."""
    (token,) = [cookie["value"] for cookie in await browser.context.cookies() if cookie["name"] == "_token"]
    async with httpx.AsyncClient(base_url=airflow_url) as client:
        await client.get("/api/v2/auth/logout", headers={"Cookie": f"_token={token}"})


async def test_thinking_and_tool_calls_of_an_agent_are_shown(browser: BrowserSession) -> None:
    if not HAS_AGENTS:
        skip_or_fail("the provider common.ai needs Python 3.11 or newer")
    page = await browser.open("/chat?dag_id=agent")
    await send_message(page, "How is the weather?")
    steps = page.get_by_label("Steps of the agent")
    await expect(steps.locator("[data-kind=tool][data-state=running]")).to_have_count(1, timeout=SECONDS)
    await page.get_by_role("radio", name="Approve").check()
    await wait_before_answer()
    await page.get_by_role("button", name="Send answer").click()
    await expect(page.locator(".by-dag[data-answer=complete] .text")).to_have_text("It is warm.", timeout=SECONDS)
    await check_agent_steps(page)
    assert await browser.accessibility_violations(page) == []
    await page.reload()
    await check_agent_steps(page)
    await page.get_by_role("link", name="View run").click()
    await expect(page.get_by_role("heading", name="Result")).to_be_visible(timeout=SECONDS)
    await check_agent_steps(page)


async def check_agent_steps(page: Page) -> None:
    steps = page.get_by_label("Steps of the agent").locator("details")
    await expect(steps.filter(has_text="get_weather")).to_have_count(1)
    thinking, tool = steps.filter(has_text="They ask for the weather."), steps.filter(has_text="get_weather")
    await expect(thinking.locator("p")).to_be_hidden()
    await thinking.locator("summary").click()
    await expect(thinking.locator("p")).to_be_visible()
    await tool.locator("summary").click()
    await expect(tool.locator("pre").last).to_contain_text('"celsius": 21')
