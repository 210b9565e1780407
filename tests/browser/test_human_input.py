"""Questions of tasks as forms, with a real Airflow in a real browser."""

from __future__ import annotations

import asyncio

from playwright.async_api import Page, expect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from support.browser_session import BrowserSession
from support.example_runs import wait_before_answer

SECONDS = 60_000
DAG_ID = "asking_chat"


async def wait_for_question(page: Page) -> None:
    await expect(page.get_by_role("form", name="Which colour?")).to_be_visible(timeout=SECONDS)
    await expect(page.get_by_text("awaiting input").first).to_be_visible(timeout=SECONDS)
    await wait_before_answer()


async def test_a_question_is_answered_on_the_run_page(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await asyncio.to_thread(rest.trigger_run, DAG_ID, {})
    page = await browser.open(f"/runs/{DAG_ID}/{run_id}")
    await wait_for_question(page)
    form = page.get_by_role("form", name="Which colour?")
    await expect(form).to_contain_text("It is for the *front door*.")
    await expect(form.get_by_role("button")).to_be_disabled()
    await browser.save_screenshots(page, "question")
    assert await browser.accessibility_violations(page) == []
    await form.get_by_label("blue").check()
    await form.get_by_label("count: How many?").fill("3")
    await form.get_by_label("finish").select_option("glossy")
    await form.get_by_label("urgent").check()
    await form.get_by_role("button", name="Send answer").click()
    await expect(page.get_by_role("region", name="Answer to ask")).to_contain_text("blue by admin", timeout=SECONDS)
    outcome = page.get_by_role("region", name="Result", exact=True)
    await expect(outcome).to_contain_text("blue 3 glossy True None", timeout=SECONDS)
    assert await browser.accessibility_violations(page) == []


async def test_a_question_is_answered_in_the_chat(browser: BrowserSession) -> None:
    page = await browser.open(f"/chat?dag_id={DAG_ID}")
    await page.get_by_label("Your message").fill("paint it")
    await page.keyboard.press("Enter")
    await wait_for_question(page)
    await browser.save_screenshots(page, "chat-question")
    await page.get_by_label("red").check()
    await page.get_by_role("button", name="Send answer").click()
    answer = page.locator(".by-dag[data-answer=complete]")
    await expect(answer).to_contain_text("red 1 matt False None", timeout=SECONDS)


async def test_a_question_that_was_answered_elsewhere_is_not_answered_again(
    browser: BrowserSession, rest: AirflowRestClient
) -> None:
    run_id = await asyncio.to_thread(rest.trigger_run, DAG_ID, {})
    page = await browser.open(f"/runs/{DAG_ID}/{run_id}")
    await wait_for_question(page)
    path = f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/ask/-1/hitlDetails"
    answer = {"chosen_options": ["red"], "params_input": {"count": 1, "finish": "matt", "urgent": False, "note": "x"}}
    await asyncio.to_thread(lambda: rest.request("PATCH", path, json=answer).raise_for_status())
    await expect(page.get_by_role("form", name="Which colour?")).to_be_hidden(timeout=SECONDS)
    await expect(page.get_by_role("region", name="Answer to ask")).to_contain_text("red")
