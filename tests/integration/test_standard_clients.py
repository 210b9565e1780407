"""Third-party clients follow a run to its `end`, also across a cut connection."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest
from httpx_sse import aconnect_sse

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.airflow_stub_fixtures import ANSWER
from support.node_clients import run_node
from support.server import RunningServer
from support.streams import EVENT_NAMES, Frame, states, stream_path, types
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

EACH_STATE = ["scheduled", "queued", "running", "success"]


@pytest.mark.parametrize("client", ["eventsource.js", "eventsource-client.js"])
async def test_event_sources_follow_a_run_across_a_cut_connection_to_its_end(
    server: RunningServer, run: RunKey, airflow: AirflowSql, client: str
) -> None:
    async with TcpProxy.listen(urlsplit(server.url).port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{stream_path(run)}"
        async with run_node(client, url, *EVENT_NAMES) as script:
            frames = await script.until("snapshot")
            await airflow.start_task(run, "ask")
            frames += [await script.next() for _ in EACH_STATE[:3]]
            await proxy.cut_connections()
            await airflow.set_task(run, "ask", "success")
            frames += await script.until("resumed")
            await airflow.run_task(run, "answer", ANSWER)
            frames += await script.until("end")
            # They also reconnect after the end, and 204 makes them stop (WHATWG HTML 9.2.3).
            if client == "eventsource.js":
                assert await script.next() == {"type": "closed", "code": 204}
            else:
                assert (await script.next())["type"] == "closed"
            assert await script.rest() == ""
    assert states(frames, "ask") == EACH_STATE
    assert states(frames, "answer")[:3] == EACH_STATE[:3]
    assert types(frames)[-2:] == ["result", "end"]
    assert frames[-2]["results"] == {"answer": ANSWER}


async def test_wscat_follows_a_run_to_its_end(server: RunningServer, run: RunKey, airflow: AirflowSql) -> None:
    url = server.url.replace("http", "ws") + stream_path(run)
    async with run_node("node_modules/wscat/bin/wscat", "--no-color", "--connect", url) as script:
        frames = await script.until("snapshot")
        await airflow.complete_chain(run)
        frames += await script.until("end")
        # wscat ends with the connection; an error would give another exit code.
        assert await script.rest() == ""
    assert states(frames, "ask") == EACH_STATE
    assert types(frames)[-2:] == ["result", "end"]


async def test_httpx_sse_follows_a_run_to_its_end(server: RunningServer, run: RunKey, airflow: AirflowSql) -> None:
    frames: list[Frame] = []
    async with (
        httpx.AsyncClient(base_url=server.url) as client,
        aconnect_sse(client, "GET", stream_path(run)) as source,
    ):
        await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
        await airflow.complete_chain(run)
        async for event in source.aiter_sse():
            if event.data:
                frames.append(event.json())
                assert event.event == frames[-1]["type"]
    assert states(frames, "ask") == EACH_STATE
    assert types(frames)[-2:] == ["result", "end"]
