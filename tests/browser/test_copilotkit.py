"""`@copilotkit/react-core` with `AirflowAgent` in a real browser, as DAGs answer it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.async_api import Page, expect
from starlette.responses import JSONResponse, Response

from stream_server.settings import Settings
from support import node, typescript
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.chat_runs import ask_human, begin_answer
from support.chromium import connect_to_chromium
from support.server import running_server
from support.static_files import serve_directory
from support.stub_callers import CallerPermissions, StubPermissions
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

BUNDLE = ("--bundle", "--minify", "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--log-level=error")
HTML = '<!doctype html><meta charset="utf-8"><title>CopilotKit</title><body><script src="page.js"></script>'
SECONDS = 30_000


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """URL of the page."""
    directory, clients = tmp_path_factory.mktemp("copilotkit"), node.installed_clients(node.CLIENTS / "copilotkit")
    node.install(typescript.WEB)
    modules = clients / "node_modules"
    options = (
        # The agent as it is here, with the packages that CopilotKit has.
        "--conditions=stream-server-source",
        f"--alias:airflow-stream-agui={typescript.WEB / 'agui' / 'src' / 'index.ts'}",
        f"--alias:@ag-ui/client={modules / '@ag-ui' / 'client'}",
        f"--alias:rxjs={modules / 'rxjs'}",
        "--loader:.css=empty",
        f"--outfile={directory / 'page.js'}",
    )
    esbuild = str(modules / "esbuild" / "bin" / "esbuild")
    subprocess.run([node.node(), esbuild, "page.jsx", *BUNDLE, *options], cwd=clients, check=True)
    (directory / "index.html").write_text(HTML)
    with serve_directory(Path(directory)) as url:
        yield url


async def ask(page: Page, text: str) -> None:
    await page.get_by_role("textbox").fill(text)
    await page.keyboard.press("Enter")


async def expect_text(page: Page, text: str) -> None:
    await expect(page.locator("main")).to_contain_text(text, timeout=SECONDS)


async def test_an_answer_survives_a_reload_and_a_lost_connection_and_a_question_is_answered(
    chromium_address: str, airflow: AirflowSql, stub: AirflowStub, settings: Callable[..., Settings], origin: str
) -> None:
    permissions, answered = StubPermissions(CallerPermissions()), asyncio.Event()

    async def respond(received: ReceivedRequest) -> Response | None:
        if received.method != "PATCH":
            return await permissions(received)
        await airflow.answer_input(key, "ask", *received.json["chosen_options"])
        answered.set()
        written = {"responded_by": {"id": "1", "name": "Ada"}, "responded_at": "2026-11-22T14:21:10Z"}
        return JSONResponse({**received.json, **written})

    stub.instead = respond
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")
    async with (
        running_server(settings(airflow_url=stub.url, cors_origins=(origin,))) as server,
        TcpProxy.listen(urlsplit(server.url).port) as proxy,
        connect_to_chromium(chromium_address) as browser,
    ):
        await eventually_async(lambda: server.hub.is_live)
        page = await browser.new_page()
        query = {"server": f"http://127.0.0.1:{proxy.port}", "key": permissions.callers[0].token, "thread": "t1"}
        await page.goto(f"{origin}/?{urlencode(query)}")
        await ask(page, "Why blue?")
        key = await begin_answer(airflow, stub, "Be")
        await expect_text(page, "Be")
        await page.reload()
        await expect_text(page, "Why blue?")
        await airflow.emit_output(key, "answer", 1, "cau")
        await expect_text(page, "Becau")
        await proxy.cut_connections()
        await airflow.emit_output(key, "answer", 2, "se of")
        await expect_text(page, "Because of")
        await ask_human(airflow, key)
        await expect(page.get_by_role("group", name="Publish?")).to_be_visible(timeout=SECONDS)
        await page.get_by_role("button", name="Approve").click()
        await eventually_async(answered.is_set, what="the answer is written")
        await airflow.push(key, "answer", "Because of light.")
        await expect_text(page, "Because of light.")
        await ask(page, "And now?")
        await eventually_async(lambda: len(stub.triggers) == 2, what="the next question triggers a run")
    assert [patch.json["chosen_options"] for patch in stub.patches] == [["Approve"]]
    assert stub.triggers[1].json["conf"]["history"] == [
        {"role": "user", "content": "Why blue?"},
        {"role": "assistant", "content": "Because of light."},
    ]
