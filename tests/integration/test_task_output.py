"""Output of running tasks, from Airflow's transaction to the client's frame."""

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
from support.waiting import eventually_answered, eventually_async

UNTIL_RUN = "?until=run"


def chunk_values(frames: list[Frame]) -> list[Any]:
    return [frame["value"] for frame in frames if frame["type"] == "chunk"]


async def receive_until_value(events: Events, last: object) -> list[Frame]:
    """Return frames up to the chunk with the given value."""
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
async def running(airflow: AirflowSql, run: RunKey) -> RunKey:
    """A run whose task `answer` is running."""
    await airflow.set_run(run, "running")
    await airflow.start_task(run, "answer")
    return run


async def test_output_is_sent_when_it_commits(server: RunningServer, airflow: AirflowSql, running: RunKey) -> None:
    async with sse(server.url, running) as events, websocket(server.url, running) as connection:
        assert (await events.next())["type"] == "snapshot"
        await connection.recv()
        await airflow.emit_output(running, "answer", 0, {"progress": 0.5, "text": "writing"}, "Be", "\u2028cause")
        frames = await receive_until_value(events, "\u2028cause")
        (seq,) = {frame["seq"] for frame in frames}
        coordinates = {
            "dag_id": "chat",
            "run_id": running.run_id,
            "task_id": "answer",
            "map_index": -1,
            "try_number": 1,
        }
        assert frames[0] == {
            "type": "progress",
            **coordinates,
            "seq": seq,
            "at": frames[0]["at"],
            "index": 0,
            "value": {"fraction": 0.5, "text": "writing"},
        }
        assert [frame["index"] for frame in frames] == [0, 1, 2]
        assert chunk_values(frames) == ["Be", "\u2028cause"]
        await airflow.emit_output(running, "answer", 3, {"chunk": {"any": ["JSON", None, 1.5]}})
        await airflow.push(running, "answer", "Because")
        frames = await events.rest()
        assert types(frames) == ["chunk", "result", "end"]
        assert chunk_values(frames) == [{"any": ["JSON", None, 1.5]}]


async def test_a_late_subscriber_gets_the_current_output_from_any_replica(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, running: RunKey
) -> None:
    await airflow.emit_output(running, "answer", 0, "Be", "cau")
    async with sse(server.url, running) as events:
        await receive_until_value(events, "cau")
        await airflow.emit_output(running, "answer", 2, "se")
        await receive_until_value(events, "se")
        for replica in (server, other):
            async with sse(replica.url, running) as joined:
                frames = await receive_until_value(joined, "se")
            assert types(frames) == ["snapshot", "chunk", "chunk", "chunk"]
            assert chunk_values(frames) == ["Be", "cau", "se"]
    await airflow.push(running, "answer", "Because")
    await airflow.set_task(running, "answer", "success")
    async with sse(other.url, running) as events:
        assert types(await events.rest()) == ["snapshot", "chunk", "chunk", "chunk", "result", "end"]


async def test_missed_output_is_replayed_by_any_replica(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, running: RunKey
) -> None:
    await airflow.emit_output(running, "answer", 0, "a")
    async with sse(server.url, running) as events:
        await receive_until_value(events, "a")
        cursor = events.ids[-1]
        await airflow.emit_output(running, "answer", 1, "b", "c")
        await receive_until_value(events, "b")
    assert cursor is not None
    await airflow.emit_output(running, "answer", 3, "d")
    for replica in (server, other):
        async with sse(replica.url, running, headers={"Last-Event-ID": cursor}) as events:
            frames = await receive_until_value(events, "d")
        assert types(frames) == ["resumed", *["chunk"] * 3]
        assert chunk_values(frames) == ["b", "c", "d"]


async def test_a_retry_retracts_output(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, running: RunKey
) -> None:
    await airflow.emit_output(running, "answer", 0, "wrong")
    async with sse(server.url, running) as events:
        await receive_until_value(events, "wrong")
        cursor = events.ids[-1]
        await airflow.set_task(running, "answer", "up_for_retry")
        await airflow.emit_output(running, "answer", 1, "late")
        frames = await events.until("snapshot")
        assert types(frames) == ["task", "reset", "snapshot"]
        assert frames[1]["reason"] == "retried"
        after = events.ids[-1]
        await airflow.start_task(running, "answer")
        await airflow.emit_output(running, "answer", 0, "right", try_number=2)
        assert chunk_values(await receive_until_value(events, "right")) == ["right"]
    assert cursor is not None
    assert after is not None
    for replica in (server, other):
        async with sse(replica.url, running) as joined:
            assert chunk_values(await receive_until_value(joined, "right")) == ["right"]
        async with sse(replica.url, running, headers={"Last-Event-ID": cursor}) as back:
            assert types(await receive_until_value(back, "right")) == ["reset", "snapshot", "chunk"]
        async with sse(replica.url, running, headers={"Last-Event-ID": after}) as back:
            assert types(await receive_until_value(back, "right")) == ["resumed", *["task"] * 3, "chunk"]


@pytest.mark.parametrize("retracted_by", ["retry", "clear"])
async def test_retracted_output_is_not_sent_again_after_the_state_was_set_by_hand(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, running: RunKey, retracted_by: str
) -> None:
    await airflow.start_task(running, "ask")
    await airflow.emit_output(running, "ask", 0, "stands")
    await airflow.emit_output(running, "answer", 0, "wrong")
    async with sse(server.url, running, UNTIL_RUN) as events:
        await receive_until_value(events, "wrong")
        if retracted_by == "retry":
            await airflow.set_task(running, "answer", "up_for_retry")
        else:
            await airflow.set_task(running, "answer", "failed")
            await airflow.clear(running, ["answer"])
        assert chunk_values([*await events.until("reset"), *await receive_until_value(events, "stands")]) == ["stands"]
        await airflow.set_task(running, "answer", "success")
        await airflow.set_run(running, "success")
        assert chunk_values(await events.rest()) == []
    for replica in (server, other):
        async with sse(replica.url, running, UNTIL_RUN) as joined:
            assert chunk_values(await joined.rest()) == ["stands"]


async def test_rolled_back_output_is_not_sent(server: RunningServer, airflow: AirflowSql, running: RunKey) -> None:
    async with sse(server.url, running) as events:
        await events.next()
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.emit_output(running, "answer", 0, "never")
        await transaction.rollback()
        await airflow.emit_output(running, "answer", 0, "sent")
        assert chunk_values(await receive_until_value(events, "sent")) == ["sent"]


async def test_output_that_is_too_large_is_left_out_with_a_gap_in_index(
    server: RunningServer, airflow: AirflowSql, running: RunKey
) -> None:
    async with sse(server.url, running) as events:
        await events.next()
        await airflow.emit_output(running, "answer", 0, "x" * (MAX_STORED_OUTPUT_BYTES - 60))
        await airflow.emit_output(running, "answer", 1, "y" * MAX_STORED_OUTPUT_BYTES)
        await airflow.emit_output(running, "answer", 2, "end")
        frames = await receive_until_value(events, "end")
    assert [frame["index"] for frame in frames] == [0, 2]
    bodies = await airflow.connection.fetch("SELECT octet_length(body) FROM stream_server.output ORDER BY id")
    assert bodies[0][0] <= MAX_STORED_OUTPUT_BYTES
    assert bodies[1][0] is None


async def test_the_latest_output_is_kept_for_new_subscribers(
    settings: Callable[..., Settings], airflow: AirflowSql, running: RunKey
) -> None:
    async with running_server(settings(max_output_bytes=100_000)) as server:
        await eventually_async(lambda: server.hub.is_live)
        for index in range(20):
            await airflow.emit_output(running, "answer", index, f"{index:05}" * 2_000)
        async with sse(server.url, running) as fresh:
            read = await receive_until_value(fresh, "00019" * 2_000)
            await airflow.emit_output(running, "answer", 20, "end")
            await receive_until_value(fresh, "end")
            async with sse(server.url, running) as joined:
                kept = await receive_until_value(joined, "end")
    assert [frame["index"] for frame in read[1:]] == list(range(11, 20))
    assert [frame["index"] for frame in kept[1:]] == list(range(11, 21))


async def test_other_xcoms_write_no_rows(airflow: AirflowSql, running: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    await airflow.push(running, "answer", "value", xcom_key="anything")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == before
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.output") == 0
    await airflow.push(running, "answer", "value")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.output") == 0


async def test_output_is_pruned_with_the_rows_of_the_journal(airflow: AirflowSql, running: RunKey) -> None:
    for index in range(10):
        await airflow.emit_output(running, "answer", index, "word")
    left = "SELECT count(*) FROM stream_server.output"
    rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    assert await airflow.connection.fetchval("SELECT stream_server.prune(NULL, 1000)") == 0
    assert await airflow.connection.fetchval("SELECT stream_server.prune('0 s', $1)", rows - 4) == rows - 4
    assert await airflow.connection.fetchval(left) == 4
    assert await airflow.connection.fetchval("SELECT stream_server.prune('0 s', 1000)") == 4
    assert await airflow.connection.fetchval(left) == 0


async def test_the_size_limit_counts_output(airflow: AirflowSql, running: RunKey) -> None:
    for index in range(100):
        await airflow.emit_output(running, "answer", index, "x" * 10_000)
    assert await airflow.connection.fetchval("SELECT stream_server.prune(NULL, 1000, 500000)") in range(40, 70)


async def test_responses_contain_no_output(server: RunningServer, airflow: AirflowSql, running: RunKey) -> None:
    run_path = stream_path(running).removesuffix("/stream")
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
        waiting = [
            asyncio.create_task(client.get(f"{run_path}/result?timeout=10s")),
            asyncio.create_task(client.get(f"{run_path}/wait?interval=1")),
        ]
        await eventually_async(lambda: server.hub.statistics().subscriptions == 2)
        await airflow.emit_output(running, "answer", 0, "word")
        await airflow.set_task(running, "answer", "up_for_retry")
        await airflow.start_task(running, "answer")
        await airflow.push(running, "answer", "Because")
        await airflow.set_run(running, "success")
        answers = [(await one).text for one in waiting]
    assert not [text for text in answers if "word" in text]
    assert '"results":{"answer":"Because"}' in answers[0]


async def test_the_firehose_sends_output_only_on_request(
    server: RunningServer, airflow: AirflowSql, running: RunKey
) -> None:
    async def open_after_ping(query: str) -> tuple[Events, Any]:
        client = httpx.AsyncClient(base_url=server.url, timeout=10)
        response = await client.send(client.build_request("GET", f"/api/v2/stream{query}"), stream=True)
        events = Events(response)
        assert (await events.next())["type"] == "ping"
        return events, client

    plain, one = await open_after_ping("")
    with_output, both = await open_after_ping("?type=chunk&type=run&dag_id=chat")
    elsewhere, three = await open_after_ping("?type=chunk&type=run&dag_id=other")
    first = with_output.ids[-1]
    await airflow.emit_output(running, "answer", 0, {"progress": 0.1}, "word")
    await airflow.set_run(running, "success")
    assert types([await with_output.next(), await with_output.next()]) == ["chunk", "run"]
    # Transitions from before may still be on their way.
    assert not {"chunk", "progress"} & {*types(await plain.until("run"))}
    back, four = await open_firehose(server, f"?type=chunk&dag_id=chat&cursor={first}")
    assert types([await back.next(), await back.next()]) == ["resumed", "chunk"]
    assert elsewhere.ids == [elsewhere.ids[0]]
    for client in (one, both, three, four):
        await client.aclose()


async def test_a_stream_of_many_runs_that_starts_while_output_is_read_gets_it(
    server: RunningServer, airflow: AirflowSql, running: RunKey, journal: str
) -> None:
    early, one = await open_firehose(server, "?type=chunk&task_id=ask")
    assert (await early.next())["type"] == "ping"
    async with AirflowSql.open(journal) as other:
        locker = other.connection
        async with airflow.connection.transaction():
            await airflow.emit_output(running, "ask", 0, "for the early client")
            await airflow.emit_output(running, "answer", 0, "for the late client")
            # The lock is granted at the commit, before the server reads the output.
            await locker.execute("BEGIN")
            lock = "LOCK TABLE stream_server.output IN ACCESS EXCLUSIVE MODE"
            locking = asyncio.create_task(locker.execute(lock), name="lock")
            await wait_for_lock_waiters(airflow, 1)
        await locking
        await wait_for_lock_waiters(airflow, 1)
        late, two = await open_firehose(server, "?type=chunk&task_id=answer")
        assert (await late.next())["type"] == "ping"
        await locker.execute("COMMIT")
        assert chunk_values([await early.next(), await late.next()]) == ["for the early client", "for the late client"]
    for client in (one, two):
        await client.aclose()


async def wait_for_lock_waiters(airflow: AirflowSql, count: int) -> None:
    """Wait until so many sessions wait for the table with the output."""

    query = "SELECT count(*) FROM pg_locks WHERE relation = 'stream_server.output'::regclass AND NOT granted"

    async def are_waiting() -> bool:
        return bool(await airflow.connection.fetchval(query) == count)

    await eventually_answered(are_waiting, what="sessions wait for the table")


async def open_firehose(server: RunningServer, query: str) -> tuple[Events, httpx.AsyncClient]:
    client = httpx.AsyncClient(base_url=server.url, timeout=10)
    response = await client.send(client.build_request("GET", f"/api/v2/stream{query}"), stream=True)
    return Events(response), client
