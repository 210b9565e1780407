"""A server on a hot standby polls, reports it, loses nothing, and continues after a promotion."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from unittest.mock import patch

import httpx
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.errors import ReadReplica
from stream_server.journal import run_store as postgres_module
from stream_server.journal import tail
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.lossless import CLUSTER
from support.lossless_ledger import Ledger, evaluate
from support.lossless_tails import TaskTail, reconnect_quickly
from support.lossless_writers import Workload, Writer, prepare_workload, read_journal
from support.postgres import create_database_with_journal, running_postgres
from support.readiness import wait_until_ready
from support.server import RunningServer, running_server
from support.standby import catch_up, promote, running_standby
from support.streams import sse, states, stream_path, websocket
from support.waiting import eventually_async

NO_PAUSE = (0.005, 0.005)
BY_POLLING = {"connected": True, "doorbell": False}


@pytest.fixture
def standby(postgres: EmbeddedPostgres, journal: str) -> Iterator[EmbeddedPostgres]:
    """A hot standby of the session's server that has replayed the installed journal."""
    with running_standby(postgres) as standby:
        catch_up(postgres, standby)
        yield standby


@pytest.fixture
def standby_settings(
    standby: EmbeddedPostgres, journal: str, settings: Callable[..., Settings]
) -> Callable[..., Settings]:
    """Settings of a server on the standby."""
    url = standby.url(journal.rpartition("/")[2])
    return lambda **options: settings(database_url=url, **options)


@pytest.fixture
async def standby_server(standby_settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    async with running_server(standby_settings()) as server:
        await wait_until_ready(server.url)
        yield server


async def wait_for_replay(postgres: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    await asyncio.to_thread(catch_up, postgres, standby)


async def test_the_server_polls_and_reports_it(
    standby_settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with running_server(standby_settings()) as server:
            assert (await wait_until_ready(server.url))["tail"] == BY_POLLING
            async with sse(server.url, run) as events, websocket(server.url, run) as connection:
                await airflow.complete_chain(run)
                frames = await events.rest()
                await connection.wait_closed()
    assert states(frames, "answer")[:3] == ["scheduled", "queued", "running"]
    assert frames[-2]["results"] == {"answer": {"text": "because"}}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == (
        "PostgreSQL is a read replica, where LISTEN does not work: polling every 0.5 s instead."
        " Use the URL of the primary"
    )


async def test_a_late_commit_reaches_an_open_stream(
    postgres: EmbeddedPostgres,
    standby: EmbeddedPostgres,
    journal: str,
    airflow: AirflowSql,
    standby_server: RunningServer,
    run: RunKey,
) -> None:
    """A standby's snapshots do not list the transactions that are in progress on the primary."""
    await wait_for_replay(postgres, standby)
    async with AirflowSql.open(journal) as other, sse(standby_server.url, run, "?until=run") as events:
        await events.next()
        transaction = other.connection.transaction()
        await transaction.start()
        await other.set_task(run, "clean_up", "scheduled")
        await airflow.run_task(run, "ask", "why")
        frame = await events.next()
        while frame["state"] != "success":
            frame = await events.next()
        await transaction.commit()
        late = await events.next()
        assert (late["task_id"], late["state"]) == ("clean_up", "scheduled")
        await airflow.set_task(run, "clean_up", "queued")
        last = await events.next()
        assert (last["task_id"], last["state"], last["seq"] > late["seq"]) == ("clean_up", "queued", True)


async def test_a_late_commit_reaches_a_client_that_subscribes_meanwhile(
    postgres: EmbeddedPostgres,
    standby: EmbeddedPostgres,
    journal: str,
    airflow: AirflowSql,
    standby_server: RunningServer,
    run: RunKey,
) -> None:
    async with AirflowSql.open(journal) as other:
        transaction = other.connection.transaction()
        await transaction.start()
        await other.set_task(run, "clean_up", "scheduled")
        await airflow.run_task(run, "ask", "why")
        await wait_for_replay(postgres, standby)
        async with sse(standby_server.url, run, "?until=run") as events:
            snapshot = await events.next()
            assert {task["task_id"]: task["state"] for task in snapshot["tasks"]} == {
                "ask": "success",
                "answer": None,
                "clean_up": None,
            }
            await transaction.commit()
            await airflow.set_task(run, "answer", "scheduled")
            frames = [await events.next(), await events.next()]
    assert [(frame["task_id"], frame["state"]) for frame in frames] == [
        ("clean_up", "scheduled"),
        ("answer", "scheduled"),
    ]


async def test_the_server_skips_work_that_only_the_primary_can_do(
    postgres: EmbeddedPostgres,
    standby: EmbeddedPostgres,
    standby_settings: Callable[..., Settings],
    airflow: AirflowSql,
    run: RunKey,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await airflow.connection.execute("DROP TRIGGER stream_server_xcom ON xcom")
    await wait_for_replay(postgres, standby)
    with caplog.at_level(logging.WARNING):
        async with running_server(standby_settings(retention="1s", check_interval="50ms")) as server:
            body = await wait_until_ready(
                server.url, ready=False, because="trigger stream_server_xcom on xcom is missing"
            )
            assert body["tail"] == BY_POLLING
            await airflow.connection.execute("SELECT stream_server.put_back(false)")
            await wait_for_replay(postgres, standby)
            await wait_until_ready(server.url)
            async with sse(server.url, run) as events:
                await airflow.run_task(run, "answer", "from the replica")
                assert (await events.rest())[-2]["results"] == {"answer": "from the replica"}
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") > 0
    assert {record.__dict__.get("action") for record in caplog.records} <= {
        "tail_deaf",
        "journal_problem",
        "transitions_lost",
    }


async def test_a_client_waits_for_a_run_that_is_not_replicated_yet(
    standby_server: RunningServer, airflow: AirflowSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "REPLICA_LAG_SECONDS", 10.0)
    version = await airflow.add_dag("fresh", CHAIN)
    key = RunKey("fresh", "just_now")
    async with httpx.AsyncClient(base_url=standby_server.url, timeout=15) as client:
        waiting = asyncio.create_task(client.get(f"{stream_path(key).removesuffix('stream')}result?timeout=0"))
        await eventually_async(lambda: standby_server.hub.is_watched(key))
        await airflow.trigger(key, version, list(CHAIN))
        assert (await waiting).status_code == 202
        monkeypatch.setattr(postgres_module, "REPLICA_LAG_SECONDS", 0.0)
        assert (await client.get(stream_path(RunKey("fresh", "never")))).status_code == 404


async def test_requests_that_must_write_are_refused(
    standby: EmbeddedPostgres, standby_settings: Callable[..., Settings]
) -> None:
    settings = standby_settings()
    url = settings.database_url.get_secret_value()
    runs = RunStore(url, pool_size=1, max_result_bytes=0, max_output_bytes=0)
    with pytest.raises(ReadReplica, match="Use a server at the primary") as refused:
        await IdempotencyKeys(runs).claim_run(b"k", b"r", "run", 60.0)
    await runs.close()
    assert (refused.value.status, refused.value.retry_after) == (501, None)


async def test_streams_continue_across_a_promotion(
    postgres: EmbeddedPostgres,
    standby: EmbeddedPostgres,
    journal: str,
    airflow: AirflowSql,
    standby_server: RunningServer,
    run: RunKey,
) -> None:
    await wait_for_replay(postgres, standby)
    async with sse(standby_server.url, run) as events, websocket(standby_server.url, run) as connection:
        await airflow.set_task(run, "answer", "scheduled")
        assert [frame["state"] for frame in await events.until("task") if frame["type"] == "task"] == ["scheduled"]
        await wait_for_replay(postgres, standby)
        await asyncio.to_thread(promote, standby)
        async with AirflowSql.open(standby.url(journal.rpartition("/")[2])) as promoted:
            await promoted.set_task(run, "answer", "queued")
            await promoted.set_task(run, "answer", "running")
            await promoted.push(run, "answer", "from the new primary")
            frames = await events.rest()
            await connection.wait_closed()
        assert states(frames, "answer") == ["queued", "running"]
        assert frames[-2]["results"] == {"answer": "from the new primary"}
        assert "reset" not in {frame["type"] for frame in frames}
    await eventually_async(lambda: standby_server.hub.statistics().subscriptions == 0)


async def test_notifications_arrive_after_a_promotion(
    standby_settings: Callable[..., Settings], standby: EmbeddedPostgres
) -> None:
    async with running_server(standby_settings(check_interval="50ms")) as server:
        await wait_until_ready(server.url)
        await asyncio.to_thread(promote, standby)
        await wait_until_ready(server.url, doorbell=True)


@pytest.mark.parametrize("promoted", [False, True], ids=["standby", "promoted"])
async def test_every_row_comes_exactly_once_from_a_replica(*, promoted: bool) -> None:
    """Many writers on the primary, with transactions that commit out of order, are rolled back or prepared."""
    seed = os.environ.get("STREAM_SERVER_SEED") or secrets.token_hex(4)
    print(f"STREAM_SERVER_SEED={seed}")  # noqa: T201 # shown where the test fails
    with running_postgres(CLUSTER) as primary:
        name = await create_database_with_journal(primary)
        field = await prepare_workload(primary.url(name), runs=2, instances=30)
        with (
            running_standby(primary, CLUSTER) as standby,
            reconnect_quickly(),
            patch.object(tail, "POLL_WITHOUT_NOTIFY_SECONDS", NO_PAUSE),
        ):
            await wait_for_replay(primary, standby)
            follower = TaskTail(standby.url(name), "tail on a replica")
            await follower.start()
            try:
                await eventually_async(lambda: follower.line.reads, what="the tail follows")
                if promoted:
                    await asyncio.to_thread(promote, standby)
                ledger = await write_for(3.0, (standby if promoted else primary).url(name), field, seed)
                journal = await read_journal((standby if promoted else primary).url(name), field)
                await eventually_async(lambda: follower.line.complete(journal), 20, "every row has come")
            finally:
                await follower.stop()
    assert evaluate(ledger, journal, [follower.line]).misses == []
    assert follower.line.restarts == []
    assert ledger.out_of_order > 0, "the schedule must provoke what the cursor is for"


async def write_for(seconds: float, url: str, field: Workload, seed: str) -> Ledger:
    """Run writers for `seconds`."""
    ledger, stop = Ledger(), asyncio.Event()
    writers = [asyncio.create_task(Writer(url, field, ledger, f"writer_{n}", seed).run(stop)) for n in range(8)]
    await asyncio.wait(writers, timeout=seconds)
    stop.set()
    await asyncio.gather(*writers)
    return ledger
