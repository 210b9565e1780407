"""Paths and queries as libraries, polyfills and proxies send them."""

from __future__ import annotations

import json
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints.tickets import TICKETS_PATH
from support.airflow_sql import CHAIN, AirflowSql
from support.server import RunningServer
from support.streams import sse, stream_path, websocket

pytestmark = pytest.mark.usefixtures("no_tracebacks")


async def test_parameters_against_caches_are_ignored(server: RunningServer, run: RunKey) -> None:
    stream = stream_path(run)
    base = stream.removesuffix("/stream")
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/api/v2/stream", "/api/v2/dags/chat/stream", stream):
            async with client.stream("GET", f"{path}?_=1732&_t=1") as response:
                assert response.status_code == 200, path
        for path in (f"{base}/result?timeout=0", f"{base}/graph?", "/api/v2/stream/runs?", "/api/v2/stream/dags?tag=a"):
            assert (await client.get(f"{path}&_=1732")).status_code in {200, 202}, path
    for path in ("/api/v2/stream?_=1732", f"{stream}?_=1732"):
        async with connect(server.url.replace("http", "ws", 1) + path, proxy=None):
            pass


async def test_a_polyfill_resumes_by_its_own_parameter(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        first = events.ids[-1] or ""
        await airflow.set_task(run, "ask", "running")
        await events.until("task")
        last = events.ids[-1] or ""
    await airflow.set_task(run, "ask", "deferred")
    for query in (f"?lastEventId={quote(last)}", f"?cursor={quote(first)}&lastEventId={quote(last)}"):
        async with sse(server.url, run, query) as events:
            assert (await events.next())["type"] == "resumed"
            # After the cursor it would be `running`.
            assert (await events.next())["state"] == "deferred"


@pytest.mark.parametrize(
    "run_id", ["manual__2026-11-29T10:00:00+00:00", "scheduled__2026-11-29T10:00+0530", "a+00:00_b"]
)
async def test_a_plus_that_became_a_space_is_reported(server: RunningServer, run_id: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/api/v2/stream", "/api/v2/dags/chat/stream"):
            refused = await client.get(f"{path}?run_id={run_id}")
            assert (refused.status_code, "%2B" in refused.json()["detail"]) == (422, True)
            async with client.stream("GET", path, params={"run_id": run_id}) as response:
                assert response.status_code == 200


ODD_RUN_IDS = ("ü 100%", "a?b#c", "a;b=c&d", "'\"\\", "a+b c", "%2F", "日本 🎉", "~!@$^*()[]{}|<>,", ":", "...")


@pytest.mark.parametrize("run_id", ODD_RUN_IDS)
async def test_any_character_but_a_slash_may_be_in_a_run_id(
    server: RunningServer, airflow: AirflowSql, run: RunKey, run_id: str
) -> None:
    key = RunKey("chat", run_id)
    version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
    await airflow.trigger(key, version, list(CHAIN))
    quoted = quote(run_id, safe="")
    path = f"/api/v2/dags/chat/dagRuns/{quoted}"
    async with httpx.AsyncClient(base_url=server.url) as client:
        result = await client.get(f"{path}/result?timeout=0")
        again = await client.get(result.headers["location"])
        others = [
            await client.get(f"{path}/graph"),
            await client.get(f"/runs/chat/{quoted}"),
            await client.post(TICKETS_PATH, json={"paths": [f"{path}/stream"]}),
        ]
    assert [result.status_code, again.status_code, *(one.status_code for one in others)] == [202, 202, 200, 200, 201]
    assert result.json()["dag_run_id"] == again.json()["dag_run_id"] == run_id
    async with sse(server.url, key, f"?ticket={others[-1].json()['ticket']}") as events:
        assert (await events.next())["run_id"] == run_id
    async with websocket(server.url, key) as connection:
        assert json.loads(await connection.recv())["run_id"] == run_id


@pytest.mark.parametrize("run_id", ["2026/11/29", "2026%2F11%2F29"])
@pytest.mark.parametrize("what", ["stream", "result", "wait", "graph"])
async def test_a_slash_in_a_run_id_is_named_as_the_reason(server: RunningServer, run_id: str, what: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        missing = await client.get(f"/api/v2/dags/chat/dagRuns/{run_id}/{what}")
        page = await client.get(f"/runs/chat/{run_id}")
        other = await client.get("/api/v2/dags/chat/dagRuns/a/b")
    assert (missing.status_code, page.status_code, other.status_code) == (404, 404, 404)
    assert "has a slash" in missing.json()["detail"]
    assert "has a slash" in page.json()["detail"]
    assert "slash" not in other.json()["detail"]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_a_client_can_ask_for_shorter_silence(server: RunningServer, run: RunKey, accept: str) -> None:
    for path in (stream_path(run), "/api/v2/stream", "/api/v2/dags/chat/stream"):
        async with (
            httpx.AsyncClient(base_url=server.url) as client,
            client.stream("GET", f"{path}?ping=1s", headers={"Accept": accept}) as response,
        ):
            # httpx gives up after 5 s without a byte. The server's own interval is 15 s.
            lines = response.aiter_lines()
            while '"type":"ping"' not in await anext(lines):
                pass


async def test_a_websocket_can_ask_for_shorter_silence(server: RunningServer, run: RunKey) -> None:
    for path in (stream_path(run), "/api/v2/stream"):
        async with connect(f"{server.url.replace('http', 'ws', 1)}{path}?ping=1s", proxy=None) as connection:
            while json.loads(await connection.recv())["type"] != "ping":
                pass


@pytest.mark.parametrize("ping", ["0", "0.5s", "61s", "1h", "-1", "soon", "", "nan"])
async def test_silence_has_bounds(server: RunningServer, run: RunKey, ping: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in (stream_path(run), "/api/v2/stream", "/api/v2/dags/chat/stream"):
            refused = await client.get(f"{path}?ping={ping}")
            assert (refused.status_code, "`ping`" in refused.json()["detail"]) == (422, True)
