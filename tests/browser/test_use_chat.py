"""`useChat` of `@ai-sdk/react` in a real browser, as DAGs answer it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.async_api import Page, expect
from starlette.responses import JSONResponse, Response

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.settings import Settings
from support import node
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import wait_for_cancellation_decision
from support.chat_runs import ask_human, begin_answer, fail_answer, retry_answer
from support.chromium import connect_to_chromium
from support.server import RunningServer, running_server
from support.static_files import serve_directory
from support.stub_callers import CallerPermissions, StubPermissions, refusal, unsigned_jwt
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

BUNDLE = ("--bundle", "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--log-level=warning")
HTML = '<!doctype html><meta charset="utf-8"><title>useChat</title><body><script src="page.js"></script>'
SECONDS = 20_000


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """URL of the page."""
    directory, clients = tmp_path_factory.mktemp("use_chat"), node.installed_clients()
    esbuild = str(clients / "node_modules" / "esbuild" / "bin" / "esbuild")
    output = f"--outfile={directory / 'page.js'}"
    subprocess.run([node.node(), esbuild, "use-chat.jsx", *BUNDLE, output], cwd=clients, check=True)
    (directory / "index.html").write_text(HTML)
    with serve_directory(Path(directory)) as url:
        yield url


@pytest.fixture
def permissions(stub: AirflowStub) -> StubPermissions:
    """The permissions of callers at the stub."""
    permissions = StubPermissions(CallerPermissions(), CallerPermissions(unsigned_jwt(sub="bob")))
    permissions.callers[1].of_dag["chat"] = refusal(403, "Forbidden")
    stub.instead = permissions
    return permissions


class ChatPage:
    """A page with a chat."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def ask(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.keyboard.press("Enter")

    async def expect_texts(self, *texts: str) -> None:
        """Wait until the last answer has these texts."""
        await expect(self.page.locator(".assistant").last.locator(".text")).to_have_text(texts, timeout=SECONDS)

    async def expect_status(self, status: str) -> None:
        await expect(self.page.get_by_role("status")).to_have_text(status, timeout=SECONDS)

    async def expect_error(self, text: str) -> None:
        await expect(self.page.get_by_role("alert")).to_contain_text(text, timeout=SECONDS)

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name).click()


class Chat(ChatPage):
    """A page with a chat, and what it is connected to."""

    def __init__(self, page: Page, server: RunningServer, proxy: TcpProxy) -> None:
        super().__init__(page)
        self.server, self.proxy = server, proxy


@asynccontextmanager
async def open_browser_page(chromium_address: str, origin: str, api: str, key: str) -> AsyncIterator[Page]:
    async with (
        connect_to_chromium(chromium_address) as browser,
    ):
        page = await browser.new_page()
        await page.goto(f"{origin}/?{urlencode({'api': api, 'key': key, 'chat': 'c1'})}")
        yield page


@pytest.fixture
def make_settings(
    settings: Callable[..., Settings], stub: AirflowStub, permissions: StubPermissions, origin: str
) -> Callable[[], Settings]:
    """A function that makes settings of a server that pages of the origin may use."""
    return lambda: settings(airflow_url=stub.url, cors_origins=(origin,), auth_cache="200ms")


@pytest.fixture
async def open_chat(
    chromium_address: str,
    airflow: AirflowSql,
    permissions: StubPermissions,
    origin: str,
    make_settings: Callable[[], Settings],
) -> Callable[..., Any]:
    """A function that opens the page, for the first caller or another one."""
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")

    @asynccontextmanager
    async def open_page(caller: int = 0, query: str = "") -> AsyncIterator[Chat]:
        async with (
            running_server(make_settings()) as server,
            TcpProxy.listen(urlsplit(server.url).port) as proxy,
        ):
            await eventually_async(lambda: server.hub.is_live)
            api = f"http://127.0.0.1:{proxy.port}/api/v2/dags/chat/chat{query}"
            async with open_browser_page(chromium_address, origin, api, permissions.callers[caller].token) as page:
                yield Chat(page, server, proxy)

    return open_page


async def test_tokens_appear_and_the_next_question_has_the_history(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with open_chat() as chat:
        await chat.ask("Why?")
        key = await begin_answer(airflow, stub, "Be")
        await chat.expect_texts("Be")
        await chat.expect_status("streaming")
        await expect(chat.page.locator(".task", has_text="answer: running")).to_be_visible()
        await airflow.emit_output(key, "answer", 1, "cause")
        await airflow.push(key, "answer", "Because.")
        await chat.expect_texts("Because.")
        await chat.expect_status("ready")
        await chat.ask("And now?")
        await eventually_async(lambda: len(stub.triggers) == 2, what="the second question triggers a run")
    assert stub.triggers[1].json["conf"] == {
        "message": "And now?",
        "history": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
    }


async def test_a_reload_resumes_and_stop_sets_the_run_to_failed(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with open_chat() as chat:
        await chat.ask("Why?")
        key = await begin_answer(airflow, stub, "Be")
        await chat.expect_texts("Be")
        await chat.page.reload()
        await chat.expect_texts("Be")
        await wait_for_cancellation_decision()
        assert stub.patches == [], "a reload does not cancel the run"
        await airflow.emit_output(key, "answer", 1, "cause")
        await chat.expect_texts("Because")
        await chat.press("Stop")
        await eventually_async(lambda: stub.patches, what="the run is set to failed")
        assert stub.patches[0].target.partition("?")[0].endswith(f"/dags/chat/dagRuns/{key.run_id}")
        assert stub.patches[0].json == {"state": "failed"}
        await chat.expect_status("ready")
    assert len(stub.triggers) == 1


async def test_a_failing_run_is_shown_as_an_error(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with open_chat() as chat:
        await chat.ask("Why?")
        await fail_answer(airflow, await begin_answer(airflow, stub, "Be"))
        await chat.expect_error("has no result: task failed (task 'answer')")
        await chat.expect_status("error")
    assert len(stub.triggers) == 1


async def test_a_retried_task_takes_its_text_back(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with open_chat(query="?reset=step") as chat:
        await chat.ask("Why?")
        key = await begin_answer(airflow, stub, "Be")
        await chat.expect_texts("Be")
        # The query belongs to each request of the page.
        await chat.page.reload()
        await chat.expect_texts("Be")
        await retry_answer(airflow, key, "Or")
        await chat.expect_texts("Or")
        await chat.expect_status("ready")


async def test_a_human_answers_the_question_of_a_task(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub, permissions: StubPermissions
) -> None:
    async def answer(received: ReceivedRequest) -> Response | None:
        if received.method != "PATCH":
            return await permissions(received)
        await airflow.answer_input(key, "ask", *received.json["chosen_options"])
        written = {"responded_by": {"id": "1", "name": "Ada"}, "responded_at": "2026-11-22T14:21:10Z"}
        return JSONResponse({**received.json, **written})

    stub.instead = answer
    async with open_chat() as chat:
        await chat.ask("Why?")
        key = await begin_answer(airflow, stub)
        await ask_human(airflow, key)
        await expect(chat.page.get_by_role("group", name="Publish?")).to_be_visible(timeout=SECONDS)
        await chat.press("Approve")
        await expect(chat.page.locator(".answered")).to_have_text("Approve", timeout=SECONDS)
        await airflow.push(key, "answer", "Because")
        await chat.expect_texts("Because")


async def test_an_answer_continues_after_a_lost_connection_and_at_another_server(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub, make_settings: Callable[[], Settings]
) -> None:
    async with open_chat() as chat, running_server(make_settings()) as other:
        await chat.ask("Why?")
        key = await begin_answer(airflow, stub, "Be")
        await chat.expect_texts("Be")
        await chat.proxy.cut_connections()
        await chat.expect_status("error")
        await chat.press("Resume")
        await chat.expect_status("streaming")
        await chat.server.hub.drain(5)
        await chat.expect_error("server")
        await chat.proxy.switch_to(urlsplit(other.url).port)
        await eventually_async(lambda: other.hub.is_live)
        await airflow.emit_output(key, "answer", 1, "cause")
        await chat.press("Resume")
        await chat.expect_texts("Because")
        await airflow.push(key, "answer", "Because")
        await chat.expect_status("ready")
    assert (len(stub.triggers), stub.patches) == (1, [])


async def test_a_user_without_rights_gets_an_error_and_no_answer(
    open_chat: Callable[..., Any], airflow: AirflowSql, stub: AirflowStub
) -> None:
    async with open_chat(caller=1) as chat:
        await chat.ask("Why?")
        await chat.expect_error("There is no DAG")
    assert stub.triggers == []


async def test_a_real_airflow_streams_an_answer_until_it_is_stopped(
    chromium_address: str, stack: DemoStack, rest: AirflowRestClient, origin: str
) -> None:
    server = stack.add_server(options=["--auth", "airflow", "--cors-origin", origin])
    await asyncio.to_thread(server.start)
    try:
        api = f"{server.url}/api/v2/dags/slow_chat/chat"
        async with open_browser_page(chromium_address, origin, api, rest.token) as page:
            chat = ChatPage(page)
            await chat.ask("count 500")
            await expect(page.locator(".assistant .text")).to_contain_text("2 3 4", timeout=3 * SECONDS)
            await chat.press("Stop")
            await chat.expect_status("ready")
            run_id = await page.locator(".assistant").get_attribute("id")
        assert run_id is not None
        assert await asyncio.to_thread(rest.wait_until_finished, "slow_chat", run_id) == "failed"
    finally:
        await asyncio.to_thread(server.stop)
