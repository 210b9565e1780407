"""Journal rows that are no transitions: requests for human input, and rows that cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal import undecodable_rows as undecodable
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Events, sse, states, types
from support.stub_callers import CallerPermissions, StubPermissions
from support.waiting import eventually_async


@asynccontextmanager
async def all_runs(url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        client.stream("GET", "/api/v2/stream", headers=headers) as response,
    ):
        yield Events(response)


async def has_read_all(server: RunningServer, airflow: AirflowSql) -> None:
    newest = await airflow.connection.fetchval("SELECT max(txid)::text::bigint FROM stream_server.journal")
    await eventually_async(
        lambda: server.hub.is_live and server.hub.cursor.is_visible(newest), what="the tail has read all that"
    )


async def metric(server: RunningServer, name: str) -> float:
    async with httpx.AsyncClient(base_url=server.url) as client:
        text = (await client.get("/metrics")).text
    return float(re.findall(rf"^stream_server_{name} (\S+)$", text, re.MULTILINE)[0])


async def test_a_request_for_human_input_changes_no_stream(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await has_read_all(server, airflow)
    async with all_runs(server.url) as firehose, sse(server.url, run, "?until=run") as events:
        await firehose.next()
        await events.next()
        run_cursor, firehose_cursor = events.ids[-1] or "", firehose.ids[-1] or ""
        await airflow.request_input(run, "ask")
        await has_read_all(server, airflow)
        await airflow.set_task(run, "ask", "scheduled")
        await airflow.set_run(run, "success")
        expected = ["task", "run"]
        assert [(await firehose.next())["type"] for _ in expected] == expected
        assert types(await events.until("run")) == expected
    async with all_runs(server.url, {"Last-Event-ID": firehose_cursor}) as firehose:
        assert [(await firehose.next())["type"] for _ in range(3)] == ["resumed", *expected]
    async with sse(server.url, run, "?until=run", {"Last-Event-ID": run_cursor}) as events:
        assert types(await events.until("run")) == ["resumed", *expected]
    assert await metric(server, "journal_rows_skipped_total") == 0


async def test_no_permission_is_looked_up_for_a_request_for_human_input(
    auth_server: RunningServer,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
    permissions: StubPermissions,
    stub: AirflowStub,
) -> None:
    await has_read_all(auth_server, airflow)
    async with all_runs(auth_server.url, ada.headers) as firehose:
        await firehose.next()
        cursor = firehose.ids[-1] or ""
        await airflow.request_input(key, "ask")
        await airflow.set_task(key, "ask", "scheduled")
        assert states(await firehose.until("task"), "ask") == ["scheduled"]
    async with all_runs(auth_server.url, {**ada.headers, "Last-Event-ID": cursor}) as firehose:
        assert types(await firehose.until("task")) == ["resumed", "task"]


@pytest.mark.parametrize("with_run", [False, True])
async def test_a_row_of_an_unknown_kind_resyncs_all_streams_once(
    server: RunningServer, airflow: AirflowSql, run: RunKey, with_run: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await has_read_all(server, airflow)
    async with all_runs(server.url) as firehose, sse(server.url, run, "?until=run") as events:
        await firehose.next()
        await events.next()
        run_cursor, firehose_cursor = events.ids[-1] or "", firehose.ids[-1] or ""
        await airflow.write_unknown_row(run if with_run else None)
        frames = await events.until("snapshot")
        assert types(frames) == ["reset", "snapshot"]
        assert frames[0]["reason"] == "transitions_lost"
        reset = await firehose.next()
        assert (reset["type"], reset["reason"]) == ("reset", "transitions_lost")
        after = firehose.ids[-1] or ""
        for state in ("scheduled", "queued", "running"):
            await airflow.set_task(run, "ask", state)
            assert types([await firehose.next(), await events.next()]) == ["task", "task"]
    assert await metric(server, "journal_rows_skipped_total") == 1
    assert caplog.text.count("unknown kind 'unknown'") == 1
    # Clients that disconnected before the row get a snapshot; those that disconnected after it lose nothing.
    async with all_runs(server.url, {"Last-Event-ID": firehose_cursor}) as firehose:
        assert (await firehose.next())["reason"] == "cursor_expired"
        await airflow.set_task(run, "ask", "success")
        assert states(await firehose.until("task"), "ask") == ["success"]
    async with all_runs(server.url, {"Last-Event-ID": after}) as firehose:
        assert [(await firehose.next())["type"] for _ in range(5)] == ["resumed", *["task"] * 4]
    async with sse(server.url, run, "?until=run", {"Last-Event-ID": run_cursor}) as events:
        assert (await events.next())["type"] == ("reset" if with_run else "resumed")


async def test_many_unknown_rows_resync_at_a_limited_rate(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undecodable, "RESYNC_SECONDS", 1.0)
    async with running_server(settings(poll_interval="1h")) as server:
        await has_read_all(server, airflow)
        async with all_runs(server.url) as firehose:
            await firehose.next()
            for number in range(10):
                await airflow.write_unknown_row()
                if number == 0:
                    assert (await firehose.next())["type"] == "reset"
            await has_read_all(server, airflow)
            assert (await firehose.next())["type"] == "reset", "the last row is not forgotten"
            await airflow.set_task(run, "ask", "scheduled")
            assert (await firehose.next())["type"] == "task"
        assert await metric(server, "journal_rows_skipped_total") == 10
