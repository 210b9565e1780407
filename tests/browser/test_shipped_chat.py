"""The shipped chat DAG on the chat page, with a real Airflow in a real browser."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import httpx
from playwright.async_api import Locator, Page, expect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from support.browser_session import BrowserSession

SECONDS = 60_000
DAG_ID = "chat_stream"
FILE = Path(__file__).resolve().parents[2] / "examples" / "dags" / f"{DAG_ID}.py"


def glossary() -> dict[str, str]:
    """Return the glossary of the DAG, parsed from its file, because importing it needs Airflow."""
    (value,) = [
        statement.value
        for statement in ast.parse(FILE.read_text()).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "GLOSSARY"
    ]
    return dict(ast.literal_eval(value))


KNOWN = glossary()
ALL = f"Explain {', '.join(KNOWN)}."
"""Takes some seconds to answer."""


async def ask(browser: BrowserSession, message: str) -> Page:
    page = await browser.open(f"/chat?dag_id={DAG_ID}")
    await send_message(page, message)
    return page


async def send_message(page: Page, message: str) -> None:
    await page.get_by_label("Your message").fill(message)
    await page.keyboard.press("Enter")


def last(page: Page, answer: str = "complete") -> Locator:
    return page.locator(f".by-dag[data-answer={answer}]").last


async def wait_for_words(page: Page) -> None:
    """Wait until the answer has started, and has not ended."""
    await expect(last(page, "coming").locator(".text")).to_contain_text(KNOWN["DAG"], timeout=SECONDS)


async def run_of(page: Page) -> str:
    href = await page.get_by_role("link", name="View run").last.get_attribute("href")
    assert href is not None
    return httpx.URL(href).path.rpartition("/")[2]


async def test_the_page_shows_steps_words_and_answer_and_keeps_the_context(
    browser: BrowserSession, rest: AirflowRestClient
) -> None:
    page = await ask(browser, ALL)
    await wait_for_words(page)
    await browser.save_screenshots(page, "chat-example-coming")
    assert await browser.accessibility_violations(page) == []
    whole = "\n\n".join(KNOWN.values())
    await expect(last(page).locator(".text")).to_have_text(whole, timeout=SECONDS, use_inner_text=True)
    seen = [text for text in await page.evaluate("window.seen") if text]
    assert [text for text in seen if not whole.startswith(text)] == []
    assert len(seen) > 20, "it was not shown word by word"
    steps = await page.evaluate("window.steps")
    assert [step for step in steps if step in {"searching", "writing"}] == ["searching", "writing"]
    assert await asyncio.to_thread(rest.get_return_value, DAG_ID, await run_of(page), "answer") == whole
    reached = await browser.names_in_tab_order(page)
    assert {"button New chat", "a View run", "textarea Your message"} <= set(reached)
    assert [name for name in reached if name.startswith("select DAG")] != []

    await send_message(page, "What is a pool?")
    await expect(last(page).locator(".text")).to_have_text(KNOWN["pool"], timeout=SECONDS)
    await expect(page.locator(".by-dag[data-answer=complete]")).to_have_count(2, timeout=SECONDS)
    await send_message(page, "And why would I want one?")
    await expect(page.locator(".by-dag[data-answer=complete]")).to_have_count(3, timeout=SECONDS)
    await expect(last(page).locator(".text")).to_have_text(KNOWN["pool"])
    await browser.save_screenshots(page, "chat-example")
    assert await browser.accessibility_violations(page) == []


async def test_a_reload_in_the_middle_loses_no_word(browser: BrowserSession) -> None:
    page = await ask(browser, ALL)
    await wait_for_words(page)
    run_id = await run_of(page)
    await page.reload()
    await expect(page.locator(".by-dag .text")).to_contain_text(KNOWN["DAG"])
    await expect(last(page).locator(".text")).to_have_text("\n\n".join(KNOWN.values()), timeout=SECONDS)
    assert await run_of(page) == run_id
    seen = [text for text in await page.evaluate("window.seen") if text]
    assert seen == sorted(seen, key=len), "it never has less than before"
    assert seen[0].startswith(KNOWN["DAG"]), "what was there before is there at once"


async def test_the_answer_can_be_stopped(browser: BrowserSession, rest: AirflowRestClient) -> None:
    page = await ask(browser, ALL)
    await wait_for_words(page)
    run_id = await run_of(page)
    await page.get_by_role("button", name="Stop").click()
    await expect(last(page, "stopped")).to_contain_text("Stopped.")
    await expect(last(page, "stopped").locator(".text")).to_contain_text(KNOWN["DAG"])
    assert await asyncio.to_thread(rest.wait_until_finished, DAG_ID, run_id) == "failed"
    assert await asyncio.to_thread(rest.get_task_states, DAG_ID, run_id) == {
        "search": ["success"],
        "answer": ["failed"],
    }


async def test_a_failed_answer_is_reported_and_retried(browser: BrowserSession, rest: AirflowRestClient) -> None:
    page = await ask(browser, ALL)
    await wait_for_words(page)
    path = f"/dags/{DAG_ID}/dagRuns/{await run_of(page)}/taskInstances/answer"
    (await asyncio.to_thread(rest.request, "PATCH", path, json={"new_state": "failed"})).raise_for_status()
    await expect(page.get_by_role("alert")).to_contain_text("Task “answer” failed", timeout=SECONDS)
    await expect(last(page, "failed").locator(".text")).to_contain_text(KNOWN["DAG"])
    await page.get_by_role("button", name="Retry").click()
    await expect(last(page).locator(".text")).to_have_text("\n\n".join(KNOWN.values()), timeout=SECONDS)
    await expect(page.locator(".by-user")).to_have_count(1)
