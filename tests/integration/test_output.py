"""What running tasks say, from Airflow's transaction to the client's frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal.queries import MAX_STORED_OUTPUT_BYTES
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import Events, Frame, sse, stream_path, types, websocket
from support.waiting import eventually_async

UNTIL_RUN = "?until=run"


def said(frames: list[Frame]) -> list[Any]:
    """The values of chunks."""
    return [frame["value"] for frame in frames if frame["type"] == "chunk"]


async def hear(events: Events, last: object) -> list[Frame]:
    """Return frames up to the chunk with a value."""
    frames = [await events.next()]
    while frames[-1].get("value") != last:
        frames.append(await events.next())
    return frames


@pytest.fixture
async def other(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """Another replica."""
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


@pytest.fixture
async def speaking(airflow: AirflowSql, run: RunKey) -> RunKey:
    """A run whose task `answer` runs."""
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "answer")
    return run


async def test_what_a_task_says_is_told_as_it_commits(
    server: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    async with sse(server.url, speaking) as events, websocket(server.url, speaking) as connection:
        assert (await events.next())["type"] == "snapshot"
        await connection.recv()
        await airflow.emit_output(speaking, "answer", 0, {"progress": 0.5, "text": "writing"}, "Be", "\u2028cause")
        frames = await hear(events, "\u2028cause")
        (seq,) = {frame["seq"] for frame in frames}
        place = {"dag_id": "chat", "run_id": speaking.run_id, "task_id": "answer", "map_index": -1, "try_number": 1}
        assert frames[0] == {
            "type": "progress",
            **place,
            "seq": seq,
            "at": frames[0]["at"],
            "index": 0,
            "value": {"fraction": 0.5, "text": "writing"},
        }
        assert [frame["index"] for frame in frames] == [0, 1, 2]
        assert said(frames) == ["Be", "\u2028cause"]
        await airflow.emit_output(speaking, "answer", 3, {"chunk": {"any": ["JSON", None, 1.5]}})
        await airflow.push(speaking, "answer", "Because")
        frames = await events.rest()
        assert types(frames) == ["chunk", "result", "end"]
        assert said(frames) == [{"any": ["JSON", None, 1.5]}]


async def test_who_joins_late_hears_what_stands_on_any_replica(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    await airflow.emit_output(speaking, "answer", 0, "Be", "cau")
    async with sse(server.url, speaking) as events:
        await hear(events, "cau")
        await airflow.emit_output(speaking, "answer", 2, "se")
        await hear(events, "se")
        for replica in (server, other):
            async with sse(replica.url, speaking) as joined:
                frames = await hear(joined, "se")
            assert types(frames) == ["snapshot", "chunk", "chunk", "chunk"]
            assert said(frames) == ["Be", "cau", "se"]
    await airflow.push(speaking, "answer", "Because")
    await airflow.set_task(speaking, "answer", "success")
    async with sse(other.url, speaking) as events:
        assert types(await events.rest()) == ["snapshot", "chunk", "chunk", "chunk", "result", "end"]


async def test_who_comes_back_hears_what_was_missed_on_any_replica(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    await airflow.emit_output(speaking, "answer", 0, "a")
    async with sse(server.url, speaking) as events:
        await hear(events, "a")
        cursor = events.ids[-1]
        await airflow.emit_output(speaking, "answer", 1, "b", "c")
        await hear(events, "b")
    assert cursor is not None
    await airflow.emit_output(speaking, "answer", 3, "d")
    for replica in (server, other):
        async with sse(replica.url, speaking, headers={"Last-Event-ID": cursor}) as events:
            frames = await hear(events, "d")
        assert types(frames) == ["resumed", *["chunk"] * 3]
        assert said(frames) == ["b", "c", "d"]


async def test_a_retry_takes_back_what_was_said(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    await airflow.emit_output(speaking, "answer", 0, "wrong")
    async with sse(server.url, speaking) as events:
        await hear(events, "wrong")
        cursor = events.ids[-1]
        await airflow.set_task(speaking, "answer", "up_for_retry")
        await airflow.emit_output(speaking, "answer", 1, "late")
        frames = await events.until("snapshot")
        assert types(frames) == ["task", "reset", "snapshot"]
        assert frames[1]["reason"] == "retried"
        after = events.ids[-1]
        await airflow.start_task(speaking, "answer")
        await airflow.emit_output(speaking, "answer", 0, "right", try_number=2)
        assert said(await hear(events, "right")) == ["right"]
    assert cursor is not None
    assert after is not None
    for replica in (server, other):
        async with sse(replica.url, speaking) as joined:
            assert said(await hear(joined, "right")) == ["right"]
        async with sse(replica.url, speaking, headers={"Last-Event-ID": cursor}) as back:
            assert types(await hear(back, "right")) == ["reset", "snapshot", "chunk"]
        async with sse(replica.url, speaking, headers={"Last-Event-ID": after}) as back:
            assert types(await hear(back, "right")) == ["resumed", *["task"] * 3, "chunk"]


@pytest.mark.parametrize("given_up", ["for a retry", "when it was cleared"])
async def test_what_was_taken_back_is_not_told_again_after_a_task_was_marked(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, speaking: RunKey, given_up: str
) -> None:
    await airflow.start_task(speaking, "ask")
    await airflow.emit_output(speaking, "ask", 0, "stands")
    await airflow.emit_output(speaking, "answer", 0, "wrong")
    async with sse(server.url, speaking, UNTIL_RUN) as events:
        await hear(events, "wrong")
        if given_up == "for a retry":
            await airflow.set_task(speaking, "answer", "up_for_retry")
        else:
            await airflow.set_task(speaking, "answer", "failed")
            await airflow.clear(speaking, ["answer"])
        assert said([*await events.until("reset"), *await hear(events, "stands")]) == ["stands"]
        await airflow.set_task(speaking, "answer", "success")
        await airflow.set_run(speaking, "success")
        assert said(await events.rest()) == []
    for replica in (server, other):
        async with sse(replica.url, speaking, UNTIL_RUN) as joined:
            assert said(await joined.rest()) == ["stands"]


async def test_what_is_not_committed_is_not_told(server: RunningServer, airflow: AirflowSql, speaking: RunKey) -> None:
    async with sse(server.url, speaking) as events:
        await events.next()
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.emit_output(speaking, "answer", 0, "never")
        await transaction.rollback()
        await airflow.emit_output(speaking, "answer", 0, "said")
        assert said(await hear(events, "said")) == ["said"]


async def test_more_than_the_bound_is_left_out_and_seen_by_a_gap(
    server: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    async with sse(server.url, speaking) as events:
        await events.next()
        await airflow.emit_output(speaking, "answer", 0, "x" * (MAX_STORED_OUTPUT_BYTES - 60))
        await airflow.emit_output(speaking, "answer", 1, "y" * MAX_STORED_OUTPUT_BYTES)
        await airflow.emit_output(speaking, "answer", 2, "end")
        frames = await hear(events, "end")
    assert [frame["index"] for frame in frames] == [0, 2]
    bodies = await airflow.connection.fetch("SELECT octet_length(body) FROM stream_server.output ORDER BY id")
    assert bodies[0][0] <= MAX_STORED_OUTPUT_BYTES
    assert bodies[1][0] is None


async def test_the_last_of_it_is_kept_for_who_joins(
    settings: Callable[..., Settings], airflow: AirflowSql, speaking: RunKey
) -> None:
    async with running_server(settings(max_output_bytes=100_000)) as server:
        await eventually_async(lambda: server.hub.is_live)
        for index in range(20):
            await airflow.emit_output(speaking, "answer", index, f"{index:05}" * 2_000)
        async with sse(server.url, speaking) as fresh:
            read = await hear(fresh, "00019" * 2_000)
            await airflow.emit_output(speaking, "answer", 20, "end")
            await hear(fresh, "end")
            async with sse(server.url, speaking) as joined:
                kept = await hear(joined, "end")
    assert [frame["index"] for frame in read[1:]] == list(range(11, 20))
    assert [frame["index"] for frame in kept[1:]] == list(range(11, 21))


async def test_other_xcoms_leave_nothing_behind(airflow: AirflowSql, speaking: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    await airflow.push(speaking, "answer", "value", xcom_key="anything")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == before
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.output") == 0
    await airflow.push(speaking, "answer", "value")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.output") == 0


async def test_it_goes_with_the_rows_of_the_journal(airflow: AirflowSql, speaking: RunKey) -> None:
    for index in range(10):
        await airflow.emit_output(speaking, "answer", index, "word")
    left = "SELECT count(*) FROM stream_server.output"
    rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    assert await airflow.connection.fetchval("SELECT stream_server.prune(NULL, 1000)") == 0
    assert await airflow.connection.fetchval("SELECT stream_server.prune('0 s', $1)", rows - 4) == rows - 4
    assert await airflow.connection.fetchval(left) == 4
    assert await airflow.connection.fetchval("SELECT stream_server.prune('0 s', 1000)") == 4
    assert await airflow.connection.fetchval(left) == 0


async def test_a_bound_of_size_counts_what_was_said(airflow: AirflowSql, speaking: RunKey) -> None:
    for index in range(100):
        await airflow.emit_output(speaking, "answer", index, "x" * 10_000)
    assert await airflow.connection.fetchval("SELECT stream_server.prune(NULL, 1000, 500000)") in range(40, 70)


async def test_answers_have_nothing_of_it(server: RunningServer, airflow: AirflowSql, speaking: RunKey) -> None:
    run_path = stream_path(speaking).removesuffix("/stream")
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
        waiting = [
            asyncio.create_task(client.get(f"{run_path}/result?timeout=10s")),
            asyncio.create_task(client.get(f"{run_path}/wait?interval=1")),
        ]
        await eventually_async(lambda: server.hub.statistics().subscriptions == 2)
        await airflow.emit_output(speaking, "answer", 0, "word")
        await airflow.set_task(speaking, "answer", "up_for_retry")
        await airflow.start_task(speaking, "answer")
        await airflow.push(speaking, "answer", "Because")
        await airflow.set_run(speaking, "success")
        answers = [(await one).text for one in waiting]
    assert not [text for text in answers if "word" in text]
    assert '"results":{"answer":"Because"}' in answers[0]


async def test_streams_of_many_runs_tell_it_where_they_are_asked_to(
    server: RunningServer, airflow: AirflowSql, speaking: RunKey
) -> None:
    async def listen(query: str) -> tuple[Events, Any]:
        client = httpx.AsyncClient(base_url=server.url, timeout=10)
        response = await client.send(client.build_request("GET", f"/api/v2/stream{query}"), stream=True)
        events = Events(response)
        assert (await events.next())["type"] == "ping"
        return events, client

    plain, one = await listen("")
    asking, two = await listen("?type=chunk&type=run&dag_id=chat")
    elsewhere, three = await listen("?type=chunk&type=run&dag_id=other")
    first = asking.ids[-1]
    await airflow.emit_output(speaking, "answer", 0, {"progress": 0.1}, "word")
    await airflow.set_run(speaking, "success")
    assert types([await asking.next(), await asking.next()]) == ["chunk", "run"]
    assert (await plain.next())["type"] == "run"
    back, four = await listen_back(server, f"?type=chunk&dag_id=chat&cursor={first}")
    assert types([await back.next(), await back.next()]) == ["resumed", "chunk"]
    assert elsewhere.ids == [elsewhere.ids[0]]
    for client in (one, two, three, four):
        await client.aclose()


async def listen_back(server: RunningServer, query: str) -> tuple[Events, httpx.AsyncClient]:
    client = httpx.AsyncClient(base_url=server.url, timeout=10)
    response = await client.send(client.build_request("GET", f"/api/v2/stream{query}"), stream=True)
    return Events(response), client
