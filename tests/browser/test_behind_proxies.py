"""Behind the documented proxies a real browser uses HTTP/2, and opens more than six streams to a host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.certificate import make_certificate
from support.chromium import connect_to_chromium
from support.reverse_proxies import PROXIES, Backends, reverse_proxy
from support.server import running_server
from support.streams import stream_path
from support.waiting import eventually_async

STREAMS = 12
"""Twice the number of connections that a browser opens to an HTTP/1.1 host."""

OPEN = """
([path, count]) => {
  window.ends = 0;
  window.sources = Array.from({length: count}, () => {
    const source = new EventSource(path);
    source.addEventListener("end", () => { source.close(); window.ends += 1; });
    return source;
  });
  window.socket = new WebSocket(location.origin.replace("http", "ws") + path);
  window.closeCode = new Promise((resolve) => { window.socket.onclose = (event) => resolve(event.code); });
}
"""
PROTOCOL = "() => performance.getEntriesByType('navigation')[0].nextHopProtocol"


@pytest.mark.parametrize("name", PROXIES)
async def test_a_browser_opens_many_streams_of_one_host(
    name: str,
    chromium_address: str,
    airflow: AirflowSql,
    settings: Callable[..., Settings],
    run: RunKey,
    tmp_path: Path,
) -> None:
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        with reverse_proxy(name, Backends(server.url, server.url), make_certificate(tmp_path)) as proxy:
            async with (
                connect_to_chromium(chromium_address) as browser,
            ):
                page = await browser.new_page(ignore_https_errors=True)
                await page.goto(f"{proxy.url}/health")
                assert await page.evaluate(PROTOCOL) == "h2"
                await page.evaluate(OPEN, [stream_path(run), STREAMS])
                await eventually_async(lambda: server.hub.statistics().subscriptions == STREAMS + 1)
                # Another request succeeds beside them.
                assert await page.evaluate("async () => (await fetch('/ready')).status") == 200
                await airflow.complete_chain(run)
                await page.wait_for_function(f"window.ends === {STREAMS}")
                assert await page.evaluate("() => window.closeCode") == 1000
