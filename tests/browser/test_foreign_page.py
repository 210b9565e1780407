"""A page of another origin can do nothing with the user's cookies (cross-site WebSocket hijacking)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.chromium import connect_to_chromium
from support.server import running_server
from support.static_files import serve_directory
from support.streams import stream_path
from support.stub_callers import CallerPermissions, StubPermissions, unsigned_jwt
from support.waiting import eventually_async

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KEY = RunKey("chat", "r1")

TRY = """async ([server, path]) => {
  const websocket = (path) => new Promise((resolve) => {
    const socket = new WebSocket(server.replace("http", "ws") + path);
    socket.onmessage = (event) => { resolve(JSON.parse(event.data).type); socket.close(); };
    socket.onclose = () => resolve("closed");
    socket.onopen = () => socket.send('{"op":"ping","id":"p"}');
  });
  const source = () => new Promise((resolve) => {
    const source = new EventSource(server + path, { withCredentials: true });
    source.addEventListener("snapshot", () => { resolve("snapshot"); source.close(); });
    source.onerror = () => { resolve("closed"); source.close(); };
  });
  const fetched = async (path, options) => {
    try {
      const answer = await fetch(server + path, { credentials: "include", ...options });
      return answer.type === "opaque" ? "opaque" : answer.status;
    } catch { return "failed"; }
  };
  const trigger = { method: "POST", mode: "no-cors", body: "{}" };
  return {
    run: await websocket(path),
    many: await websocket("/api/v2/stream"),
    source: await source(),
    result: await fetched(path.replace("/stream", "/result?timeout=0")),
    trigger: await fetched("/api/v2/dags/chat/dagRuns?wait_for_completion=true&timeout=0", trigger),
  };
}"""


async def open_everything(page: Page, server: str) -> Any:
    return await page.evaluate(TRY, [server, stream_path(KEY)])


async def test_cookies_alone_open_nothing_for_a_foreign_page(
    chromium_address: str, settings: Callable[..., Settings], airflow: AirflowSql, stub: AirflowStub
) -> None:
    ada = CallerPermissions(unsigned_jwt(sub="ada", exp=time.time() + 3600))
    stub.instead = StubPermissions(ada)
    await airflow.trigger(KEY, stub.version, list(CHAIN))
    with serve_directory(EXAMPLES) as friendly, serve_directory(EXAMPLES) as foreign:
        configured = settings(airflow_url=stub.url, cors_origins=(friendly,))
        async with (
            running_server(configured) as server,
            connect_to_chromium(chromium_address) as browser,
        ):
            await eventually_async(lambda: server.hub.is_live)
            context = await browser.new_context()
            # Cookies belong to the host, whatever the port: the foreign page is same-site, so the cookies are sent.
            await context.add_cookies([{"name": "_token", "value": ada.token, "domain": "127.0.0.1", "path": "/"}])
            page = await context.new_page()
            await page.goto(f"{foreign}/page.html")
            assert await open_everything(page, server.url) == {
                "run": "closed",
                "many": "closed",
                "source": "closed",
                "result": "failed",
                "trigger": "opaque",
            }
            assert stub.received == []
            await page.goto(f"{friendly}/page.html")
            assert await open_everything(page, server.url) == {
                "run": "snapshot",
                "many": "ack",
                "source": "snapshot",
                "result": 202,
                "trigger": "opaque",
            }
            assert len(stub.triggers) == 1
