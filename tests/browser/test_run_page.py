"""The run page and the list of runs, with a real Airflow in a real browser."""

from __future__ import annotations

import asyncio

from playwright.async_api import Page, WebSocket, expect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from support.browser_session import BrowserSession

SECONDS = 60_000

FEWEST_EDGES = """
new Promise((resolve) => {
  const counts = [];
  requestAnimationFrame(function look() {
    counts.push(document.querySelectorAll(".react-flow__edge-path").length);
    if (counts.length < 60) requestAnimationFrame(look);
    else resolve(Math.min(...counts));
  });
})
"""
"""Returns the least number of edges that the graph has in any of the next 60 frames."""


def path_of(dag_id: str, run_id: str) -> str:
    return f"/runs/{dag_id}/{run_id}"


async def trigger(rest: AirflowRestClient, dag_id: str, **conf: object) -> str:
    return await asyncio.to_thread(rest.trigger_run, dag_id, conf)


async def test_a_run_is_followed_from_its_trigger_to_its_teardown(
    browser: BrowserSession, rest: AirflowRestClient
) -> None:
    listed = await browser.open("/")
    await expect(listed.get_by_role("status")).to_have_text("Live")
    run_id = await trigger(rest, "chat_answer", question="Why is the sky blue?", teardown_seconds=3)
    await listed.get_by_role("link", name=run_id).click()
    page = listed
    await expect(page.get_by_role("heading", name="Result", exact=True)).to_be_visible(timeout=SECONDS)
    outcome = page.get_by_role("region", name="Result", exact=True)
    await expect(outcome).to_contain_text("Air scatters blue light more than red.")
    await expect(outcome).to_contain_text("Teardown tasks are running")
    graph = page.get_by_role("region", name="DAG")
    await expect(graph.locator(".task")).to_have_count(5)
    assert await page.evaluate(FEWEST_EDGES) == 5, "edges are there whatever changes"
    await browser.save_screenshots(page, "run")
    await expect(graph.locator(".task[data-result=true]")).to_contain_text("answer")
    await expect(graph.locator(".task", has_text="close_session")).to_contain_text("success", timeout=SECONDS)
    await expect(page.get_by_role("status")).to_have_text("Ended")
    await expect(outcome).not_to_contain_text("Teardown tasks")
    rows = page.get_by_role("table").get_by_role("row")
    await expect(rows.filter(has_text="success")).to_have_count(5)
    await expect(page.get_by_role("region", name="Event log")).to_contain_text("Result available")
    assert await browser.accessibility_violations(page) == []


async def test_a_failure_is_shown_before_the_teardown_ends(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await trigger(rest, "fail_before_teardown")
    page = await browser.open(path_of("fail_before_teardown", run_id))
    await expect(page.get_by_role("region", name="Failed")).to_contain_text("failed", timeout=SECONDS)
    await expect(page.locator(".summary .state")).to_have_text("running")
    await browser.save_screenshots(page, "failure")
    assert await browser.accessibility_violations(page) == []
    await expect(page.get_by_role("status")).to_have_text("Ended", timeout=SECONDS)


async def test_instances_of_mapped_tasks_are_counted(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await trigger(rest, "mapped_squares")
    page = await browser.open(path_of("mapped_squares", run_id))
    await expect(page.get_by_role("region", name="Result", exact=True)).to_contain_text("25", timeout=SECONDS)
    await expect(page.locator(".task", has_text="square")).to_contain_text("5/5")
    await browser.save_screenshots(page, "mapped")
    assert await browser.accessibility_violations(page) == []


async def test_groups_are_drawn_around_their_tasks(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await trigger(rest, "form_group")
    page = await browser.open(path_of("form_group", run_id))
    await expect(page.get_by_role("region", name="Result", exact=True)).to_be_visible(timeout=SECONDS)
    graph = page.get_by_role("region", name="DAG")
    await expect(graph.locator(".group")).to_have_count(2)
    await expect(graph.locator(".group", has_text="mapped")).to_contain_text("each")
    await expect(graph.locator(".task[data-result=true]")).to_have_count(2)
    await expect(graph.locator(".task[data-result=true]", has_text="2/2")).to_have_count(1)
    await browser.save_screenshots(page, "groups")
    assert await browser.accessibility_violations(page) == []


async def test_everything_can_be_done_with_the_keyboard(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await trigger(rest, "slow_chat", message="count 500", history=[])
    listed = await browser.open("/")
    await expect(listed.get_by_role("link", name=run_id)).to_be_visible(timeout=SECONDS)
    assert (await browser.names_in_tab_order(listed))[0] == "a Skip to content"
    await listed.get_by_role("link", name=run_id).focus()
    await listed.keyboard.press("Enter")
    page = listed
    await expect(page.locator(".task", has_text="answer")).to_contain_text("running", timeout=SECONDS)
    reached = await browser.names_in_tab_order(page)
    assert reached[:4] == ["a Skip to content", "a stream_server", "a Runs", "a Chat"]
    assert {"button Stop run", "div answer: running"} <= set(reached)
    assert any("Event log" in name or name.startswith("ol") for name in reached)
    await page.get_by_role("button", name="Stop run").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Mark as failed").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("region", name="Failed")).to_be_visible(timeout=SECONDS)


async def test_a_run_can_be_stopped(browser: BrowserSession, rest: AirflowRestClient) -> None:
    run_id = await trigger(rest, "slow_chat", message="count 500", history=[])
    page = await browser.open(path_of("slow_chat", run_id))
    await expect(page.locator(".task", has_text="answer")).to_contain_text("running", timeout=SECONDS)
    await page.get_by_role("button", name="Stop run").click()
    await page.get_by_role("button", name="Mark as failed").click()
    await expect(page.get_by_role("region", name="Failed")).to_be_visible(timeout=SECONDS)


async def test_an_unknown_run_is_reported(browser: BrowserSession) -> None:
    page = await browser.open(path_of("chat_answer", "missing"))
    await expect(page.get_by_role("main")).to_contain_text("DAG 'chat_answer' has no run 'missing'")


async def test_the_list_of_runs_has_no_accessibility_problem(browser: BrowserSession, rest: AirflowRestClient) -> None:
    await trigger(rest, "native_result")
    page = await browser.open("/")
    await expect(page.get_by_role("table")).to_contain_text("native_result")
    await browser.save_screenshots(page, "runs")
    assert await browser.accessibility_violations(page) == []


async def test_tabs_share_one_connection(browser: BrowserSession, rest: AirflowRestClient) -> None:
    opened: list[WebSocket] = []

    def record_socket(socket: WebSocket) -> None:
        opened.append(socket)

    async def tab() -> Page:
        page = await browser.open("/chat")
        page.on("websocket", record_socket)
        await page.goto(f"{browser.url}/")
        await expect(page.get_by_role("status")).to_have_text("Live")
        return page

    first, second = await tab(), await tab()
    assert [socket.is_closed() for socket in opened] == [False]
    await first.close()
    run_id = await trigger(rest, "native_result")
    await expect(second.get_by_role("link", name=run_id)).to_be_visible(timeout=SECONDS)
    assert len(opened) == 2
