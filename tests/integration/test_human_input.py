"""Requests for human input in all streams, and journal rows that cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stream_server.domain.human_input import parse_record
from stream_server.domain.run_state import RunKey
from stream_server.journal import undecodable_rows as undecodable
from stream_server.journal.human_input import InstanceName, fetch_requests
from stream_server.journal.queries import COMMON_PLACEHOLDERS
from stream_server.journal.status import load_queries_for
from stream_server.protocol.close_codes import CloseCode
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Events, Frame, sse, states, stream_path, types
from support.stub_callers import CallerPermissions, StubPermissions
from support.waiting import eventually_async


@asynccontextmanager
async def all_runs(
    url: str, headers: Mapping[str, str] | None = None, query: str = "", *, dag_id: str | None = None
) -> AsyncIterator[Events]:
    path = "/api/v2/stream" if dag_id is None else f"/api/v2/dags/{dag_id}/stream"
    async with (
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        client.stream("GET", path + query, headers=headers) as response,
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


INPUT_TYPES = ["input", "input_answered"]

WITH_INPUT = "?type=input&type=input_answered"


async def ask(airflow: AirflowSql, key: RunKey, **fields: Any) -> None:
    await airflow.start_task(key, "ask")
    await airflow.request_input(key, "ask", **fields)
    await airflow.set_task(key, "ask", "awaiting_input")


def inputs(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames if frame["type"] in INPUT_TYPES]


async def test_a_question_and_its_answer_reach_all_streams(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await has_read_all(server, airflow)
    async with all_runs(server.url, query=WITH_INPUT) as firehose, sse(server.url, run, "?until=run") as events:
        await firehose.next()
        await events.next()
        run_cursor, firehose_cursor = events.ids[-1] or "", firehose.ids[-1] or ""
        await ask(airflow, run)
        question = (await events.until("input"))[-1]
        assert (question["subject"], question["options"]) == ("Go on?", ["Approve", "Reject"])
        assert (await firehose.next())["asked_at"] == question["asked_at"]
        async with sse(server.url, run, "?until=run") as late:
            assert types(await late.until("input")) == ["snapshot", "input"]
        await airflow.answer_input(run, "ask", "Approve", reason="fine")
        answer = (await events.until("input_answered"))[-1]
        assert (answer["by"], answer["chosen_options"]) == ({"id": "ada", "name": "Ada"}, ["Approve"])
        assert (answer["asked_at"], answer["params_input"]) == (question["asked_at"], {"reason": "fine"})
        await firehose.until("input_answered")
        await airflow.set_run(run, "success")
        await events.until("end")
    async with all_runs(server.url, {"Last-Event-ID": firehose_cursor}, WITH_INPUT) as firehose:
        assert types(await firehose.until("input_answered")) == ["resumed", *INPUT_TYPES]
    async with sse(server.url, run, "?until=run", {"Last-Event-ID": run_cursor}) as events:
        assert inputs(await events.until("run")) == INPUT_TYPES
    assert await metric(server, "journal_rows_skipped_total") == 0


async def test_a_client_that_knows_the_question_resumes_with_the_answer_alone(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    async with sse(server.url, run, "?until=run") as events:
        await ask(airflow, run)
        await events.until("input")
        await has_read_all(server, airflow)
        await airflow.set_task(run, "answer", "scheduled")
        while (await events.next()).get("task_id") != "answer":
            pass
        cursor = events.ids[-1] or ""
    await airflow.answer_input(run, "ask", "Reject")
    await airflow.set_run(run, "success")
    async with sse(server.url, run, "?until=run", {"Last-Event-ID": cursor}) as events:
        assert inputs(await events.until("run")) == ["input_answered"]


async def test_the_deadline_is_sent_when_it_is_known(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    async with sse(server.url, run, "?until=run") as events:
        await airflow.start_task(run, "ask")
        await airflow.request_input(run, "ask", defaults=["Reject"])
        assert "expires_at" not in (await events.until("input"))[-1]
        await airflow.connection.execute(
            "UPDATE task_instance SET state = 'awaiting_input', next_method = 'execute_complete',"
            " trigger_timeout = '2030-01-01Z' WHERE task_id = 'ask'"
        )
        assert (await events.until("input"))[-1]["expires_at"] == "2030-01-01T00:00:00Z"
        await airflow.answer_input(run, "ask", "Reject", by=None)
        answer = (await events.until("input_answered"))[-1]
        assert (answer["expired"], answer.get("by")) == (True, None)


async def test_many_runs_without_a_type_have_no_human_input(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await has_read_all(server, airflow)
    async with all_runs(server.url) as firehose:
        await firehose.next()
        await ask(airflow, run)
        frames = [await firehose.next() for _ in range(4)]
        assert states(frames, "ask") == ["scheduled", "queued", "running", "awaiting_input"]


async def test_content_is_withheld_from_callers_without_the_permission(
    auth_server: RunningServer, airflow: AirflowSql, key: RunKey, ada: CallerPermissions, permissions: StubPermissions
) -> None:
    ada.forbid_inputs()
    await has_read_all(auth_server, airflow)
    async with (
        all_runs(auth_server.url, ada.headers, WITH_INPUT) as firehose,
        all_runs(auth_server.url, ada.headers, WITH_INPUT, dag_id="chat") as of_dag,
        sse(auth_server.url, key, "?until=run", ada.headers) as events,
    ):
        await firehose.next()
        await of_dag.next()
        await ask(airflow, key, subject="Secret?", body="Secret", params={"secret": "Secret"})
        await airflow.answer_input(key, "ask", "Approve", secret="Secret")
        for source in (firehose, of_dag, events):
            frames = [frame for frame in await source.until("input_answered") if frame["type"] in INPUT_TYPES]
            assert {frame["type"] for frame in frames} == set(INPUT_TYPES)
            assert all(frame["withheld"] for frame in frames)
            assert "Secret" not in str(frames)
            assert "Approve" not in str(frames)


@pytest.mark.parametrize("can_read_values", [True, False])
async def test_content_comes_with_the_permission(
    auth_server: RunningServer,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
    permissions: StubPermissions,
    can_read_values: bool,
) -> None:
    ada.forbid_inputs()
    if not can_read_values:
        ada.forbid_xcoms()
    await ask(airflow, key)
    async with sse(auth_server.url, key, "?until=run", ada.headers) as events:
        assert (await events.until("input"))[-1]["withheld"]
        cursor = events.ids[-1] or ""
        ada.inputs = None
        assert (await events.until("close"))[-1]["code"] == CloseCode.ACCESS_CHANGED
    async with sse(auth_server.url, key, "?until=run", {**ada.headers, "Last-Event-ID": cursor}) as events:
        frames = await events.until("input")
        assert (frames[0]["reason"], frames[-1]["subject"]) == ("access_changed", "Go on?")


@pytest.mark.parametrize("change", ["options = '{}'", "subject = repeat('x', 300000)", "created_at = 'infinity'"])
async def test_an_unusual_request_affects_only_itself(
    server: RunningServer, airflow: AirflowSql, run: RunKey, change: str
) -> None:
    async with sse(server.url, run, "?until=run") as events:
        await airflow.start_task(run, "ask")
        async with airflow.connection.transaction():
            await airflow.request_input(run, "ask")
            await airflow.connection.execute(f"UPDATE hitl_detail SET {change}")
        await airflow.start_task(run, "answer")
        await airflow.request_input(run, "answer")
        frames = await events.until("input")
        if "subject" in change:
            assert frames[-1]["reference"]["href"].endswith("/taskInstances/ask/-1/hitlDetails")
            frames = await events.until("input")
        assert frames[-1]["task_id"] == "answer"
        async with sse(server.url, run, "?until=run") as late:
            frames = await late.until("input")
            assert types(frames) == ["snapshot", "input"]


async def test_contents_of_a_run_that_are_sent_count_for_its_limit_alone(
    airflow: AirflowSql, run: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunKey(run.dag_id, "other")
    version = await airflow.connection.fetchval("SELECT created_dag_version_id FROM dag_run LIMIT 1")
    await airflow.trigger(other, version, list(CHAIN))
    # The newest request comes last.
    for key, task_id, size in (
        (other, "ask", 500),
        (run, "clean_up", 500),
        (run, "ask", 500),
        (run, "answer", 5000),
        (other, "answer", 500),
    ):
        await airflow.start_task(key, task_id)
        await airflow.request_input(key, task_id, subject="x" * size)
    monkeypatch.setitem(COMMON_PLACEHOLDERS, "request_bytes", "1000")
    monkeypatch.setitem(COMMON_PLACEHOLDERS, "all_request_bytes", "1200")
    names: list[InstanceName] = [(*key, task_id, -1, None) for key in (run, other) for task_id in CHAIN]
    queries = await load_queries_for(airflow.connection)
    rows = await fetch_requests(airflow.connection, queries, [], names)
    records = [parse_record(row["record"]) for row in rows]
    sent = {(one.run_id, one.task_id) for one in records if one is not None and one.content is not None}
    assert len(records) == 5
    assert sent == {(run.run_id, "clean_up"), (run.run_id, "ask"), ("other", "ask"), ("other", "answer")}


async def test_streams_go_on_where_the_requests_cannot_be_read(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    async with running_server(settings()) as server:
        await has_read_all(server, airflow)
        async with sse(server.url, run, "?until=run") as events:
            await events.next()
            await airflow.connection.execute("ALTER TABLE hitl_detail RENAME TO hidden")
            await airflow.connection.execute(
                "INSERT INTO stream_server.journal (kind, ti_id) VALUES ('input', $1)", uuid4()
            )
            await airflow.start_task(run, "ask")
            frames = [await events.next() for _ in range(3)]
            assert states(frames, "ask") == ["scheduled", "queued", "running"]
        await eventually_async(lambda: server.watcher_count(run) == 0, what="the run is not watched")
        # The first read notices that the table is missing, and is repeated without it.
        async with httpx.AsyncClient(base_url=server.url) as client:
            answers = [await client.get(stream_path(run).replace("/stream", "/result?timeout=0")) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        await airflow.connection.execute("ALTER TABLE hidden RENAME TO hitl_detail")


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
