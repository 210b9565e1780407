"""Resuming with a cursor: each missed frame is replayed once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import Frame, frames_of, sse, states, stream_path, types, websocket
from support.waiting import eventually_async

UNTIL_RUN = "?until=run"


@pytest.fixture
async def other(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """Another replica, which shares only the database with the first."""
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@asynccontextmanager
async def resuming(
    server: RunningServer, key: RunKey, cursor: str | None, transport: str, query: str
) -> AsyncIterator[Any]:
    """Resume a stream on any transport; yield a function that reads frames up to one of the given type."""
    assert cursor is not None, "the last frame of a batch has a cursor"
    if transport == "websocket":
        async with websocket(server.url, key, f"{query}&cursor={cursor}") as connection:

            async def until(kind: str) -> list[Frame]:
                frames = [json.loads(await connection.recv())]
                while frames[-1]["type"] != kind:
                    frames.append(json.loads(await connection.recv()))
                return frames

            yield until
    elif transport == "ndjson":
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=10) as client,
            client.stream(
                "GET", stream_path(key, f"{query}&cursor={cursor}"), headers={"Accept": "application/x-ndjson"}
            ) as response,
        ):
            lines = response.aiter_lines()

            async def until(kind: str) -> list[Frame]:
                frames = [json.loads(await anext(lines))]
                while frames[-1]["type"] != kind:
                    frames.append(json.loads(await anext(lines)))
                return frames

            yield until
    else:
        async with sse(server.url, key, query, headers={"Last-Event-ID": cursor}) as events:
            yield events.until


@pytest.mark.parametrize("transport", ["sse", "websocket", "ndjson"])
async def test_any_replica_replays_missed_frames_and_none_twice(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, run: RunKey, transport: str
) -> None:
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        await airflow.set_task(run, "ask", "scheduled")
        before = await events.next()
        cursor = events.ids[-1]
    await airflow.set_task(run, "ask", "queued")
    await airflow.run_task(run, "answer", "in the meantime")
    async with resuming(other, run, cursor, transport, UNTIL_RUN) as until:
        missed = await until("result")
        await airflow.set_task(run, "ask", "running")
        live = await until("task")
    assert missed[0] == {"type": "resumed", "dag_id": run.dag_id, "run_id": run.run_id, "since": cursor}
    assert states(missed, "ask") == ["queued"]
    assert states(missed, "answer")[-2:] == ["running", "success"]
    assert missed[-1]["results"] == {"answer": "in the meantime"}
    assert states(live, "ask") == ["running"]
    seqs = [frame["seq"] for frame in [before, *missed, *live] if frame["type"] == "task"]
    assert seqs == sorted(set(seqs))


async def test_an_outcome_that_was_sent_is_not_sent_again(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.run_task(run, "answer", 42)
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.until("result")
        cursor = events.ids[-1]
    assert cursor is not None
    assert cursor.endswith(".result")
    await airflow.set_task(run, "clean_up", "success")
    for replica in (server, other):
        async with resuming(replica, run, cursor, "sse", UNTIL_RUN) as until:
            frames = await until("task")
        assert types(frames) == ["resumed", "task"]
    await airflow.set_run(run, "success")
    async with resuming(other, run, cursor, "sse", UNTIL_RUN) as until:
        frames = await until("end")
    assert types(frames) == ["resumed", "task", "run", "end"]
    assert frames[-1]["outcome"] == "result"


async def test_an_outcome_retracted_meanwhile_resets_the_stream(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.run_task(run, "answer", "old")
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.until("result")
        cursor = events.ids[-1]
    await airflow.clear(run, ["answer"])
    await airflow.run_task(run, "answer", "new")
    async with resuming(server, run, cursor, "sse", UNTIL_RUN) as until:
        frames = await until("result")
    assert types(frames) == ["reset", "snapshot", "result"]
    assert frames[0]["reason"] == "revoked"
    assert frames[-1]["results"] == {"answer": "new"}


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        ("nonsense", "cursor_damaged"),
        ("0123456789ab.5:9:5,7", "cursor_foreign"),
        ("{epoch}.18446744073709551000:18446744073709551000:", "cursor_foreign"),
    ],
)
async def test_an_unknown_cursor_resets_the_stream(
    server: RunningServer, airflow: AirflowSql, run: RunKey, cursor: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_server.hub.hub.CATCH_UP_SECONDS", 0.1)
    epoch = await airflow.connection.fetchval("SELECT epoch FROM stream_server.meta")
    for transport, state in (("sse", "scheduled"), ("websocket", "queued"), ("ndjson", "running")):
        async with resuming(server, run, cursor.format(epoch=epoch), transport, UNTIL_RUN) as until:
            frames = await until("snapshot")
            assert types(frames) == ["reset", "snapshot"]
            assert frames[0]["reason"] == reason
            await airflow.set_task(run, "ask", state)
            assert states(await until("task"), "ask") == [state]


async def test_an_expired_cursor_resets_the_stream(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        cursor = events.ids[-1]
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        await airflow.set_task(run, "ask", "scheduled")
        await events.next()
    await airflow.empty_journal()
    async with resuming(server, run, cursor, "sse", UNTIL_RUN) as until:
        frames = await until("snapshot")
    assert [frames[0]["type"], frames[0]["reason"]] == ["reset", "cursor_expired"]
    assert {task["task_id"]: task["state"] for task in frames[1]["tasks"]}["ask"] == "scheduled"


async def test_resuming_after_the_end_returns_204(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.run_task(run, "answer", 1)
    async with sse(server.url, run) as events:
        await events.rest()
        cursor = events.ids[-1]
    assert cursor is not None
    async with httpx.AsyncClient(base_url=server.url) as client:
        again = await client.get(stream_path(run), headers={"Last-Event-ID": cursor})
        assert (again.status_code, again.content) == (204, b"")
        assert (await client.get(stream_path(run, f"?cursor={cursor}"))).status_code == 204
    async with websocket(server.url, run, f"?cursor={cursor}") as connection:
        assert await frames_of(connection) == []
        assert connection.close_code == 1000


async def test_last_event_id_takes_precedence_over_the_cursor_in_the_url(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        first = events.ids[-1]
        await airflow.set_task(run, "ask", "scheduled")
        await events.next()
        second = events.ids[-1]
    assert second is not None
    async with sse(server.url, run, f"{UNTIL_RUN}&cursor={first}", headers={"Last-Event-ID": second}) as events:
        assert (await events.next())["since"] == second


async def test_a_replica_that_is_behind_catches_up_first(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    """The client's cursor is from a replica that has read more than the replica that it resumes at."""
    behind = other.hub.cursor
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        await airflow.set_task(run, "ask", "scheduled")
        await events.next()
        cursor = events.ids[-1]
    ahead = other.hub.cursor
    other.set_hub_position(behind)
    async with sse(other.url, run, UNTIL_RUN, headers={"Last-Event-ID": cursor or ""}) as events:
        await eventually_async(lambda: other.hub.statistics().runs == 1)
        other.advance_hub(ahead)
        await airflow.set_task(run, "ask", "queued")
        frames = await events.until("task")
    assert types(frames) == ["resumed", "task"]
    assert states(frames, "ask") == ["queued"]


async def test_a_cursor_of_another_history_resets_the_stream(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    """As after the promotion of a standby that was behind, which assigns the same ids to other rows."""
    async with sse(server.url, run, UNTIL_RUN) as events:
        await events.next()
        await airflow.set_task(run, "ask", "scheduled")
        await events.next()
        cursor = events.ids[-1]
    await airflow.connection.execute("UPDATE stream_server.journal SET at = at + interval '1 microsecond'")
    async with resuming(other, run, cursor, "sse", UNTIL_RUN) as until:
        frames = await until("snapshot")
    assert [frames[0]["type"], frames[0]["reason"]] == ["reset", "cursor_foreign"]
