"""The database behind an address is replaced: clients stay connected and get a correct state."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import ClientConnection

from stream_server.cli.demo.ports import LOOPBACK
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.lossless_clients import Clients
from support.lossless_writers import prepare_workload
from support.postgres import (
    create_database_from_airflow_template,
    create_database_with_journal,
    running_postgres,
)
from support.readiness import wait_until_ready
from support.server import RunningServer, running_server
from support.standby import base_backup, catch_up, promote, running_standby, stop_following
from support.streams import DEADLINE, Events, Frame, sse, states, websocket
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_async

WATCHED = "?until=run"
GROWTH_MEGABYTES = 10.0
NEXT_NUMBER = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
WAL_WRITER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"


@pytest.fixture
def primary(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that a test may stop for good; the parameter is its settings."""
    with running_postgres(getattr(request, "param", None)) as server:
        yield server


@pytest.fixture
async def database(primary: EmbeddedPostgres) -> str:
    """Name of an Airflow database with the journal installed."""
    return await create_database_with_journal(primary)


@pytest.fixture
async def run(primary: EmbeddedPostgres, database: str) -> RunKey:
    """A run of three tasks that was just triggered."""
    async with AirflowSql.open(primary.url(database)) as airflow:
        version = await airflow.add_dag("chat", {"ask": [], "answer": [], "clean_up": []})
        key = RunKey("chat", "r1")
        await airflow.trigger(key, version, ["ask", "answer", "clean_up"])
    return key


def url_through(proxy: TcpProxy, database: str) -> str:
    return f"postgresql://airflow@{LOOPBACK}:{proxy.port}/{database}"


@asynccontextmanager
async def server_behind(proxy: TcpProxy, database: str, **options: object) -> AsyncIterator[RunningServer]:
    """Run a server whose database is behind a proxy."""
    settings = Settings.load(database_url=url_through(proxy, database), port=0, grace_period=2.0, **options)
    async with running_server(settings) as server:
        await wait_until_ready(server.url)
        yield server


async def write(postgres: EmbeddedPostgres, database: str, run: RunKey, *steps: tuple[str, str]) -> list[int]:
    """Change the states of tasks, each in a transaction; return the transaction ids."""
    async with AirflowSql.open(postgres.url(database)) as airflow:
        before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
        for task_id, state in steps:
            await airflow.set_task(run, task_id, state)
        rows = await airflow.connection.fetch(
            "SELECT txid::text::bigint AS txid FROM stream_server.journal WHERE id > $1 ORDER BY id", before
        )
    return [row["txid"] for row in rows]


async def write_under(numbers: list[int], postgres: EmbeddedPostgres, database: str, run: RunKey) -> None:
    """Bring `answer` to `failed` in transactions that reuse the ids of lost ones, and in one more."""
    left = ["scheduled", "queued", "running", "failed"][-len(numbers) - 1 :]
    async with AirflowSql.open(postgres.url(database)) as airflow:
        for number in numbers:
            while await airflow.connection.fetchval(NEXT_NUMBER) < number:
                await airflow.connection.fetchval("SELECT pg_current_xact_id()")
            assert await write(postgres, database, run, ("answer", left.pop(0))) == [number]
    await write(postgres, database, run, ("answer", left[0]))


async def wait_for_state(events: Events, task_id: str, state: str) -> list[Frame]:
    """Wait for a transition; return all frames up to it."""
    frames = [await events.next()]
    while (frames[-1].get("task_id"), frames[-1].get("state")) != (task_id, state):
        frames.append(await events.next())
    return frames


async def wait_for_resync(events: Events) -> dict[str, str | None]:
    """Wait for a reset because the journal changed; return the states in the snapshot after it."""
    reset = (await events.until("reset"))[-1]
    assert reset["reason"] == "journal_changed"
    return states_in(await events.next())


def states_in(snapshot: Frame) -> dict[str, str | None]:
    assert snapshot["type"] == "snapshot"
    return {task["task_id"]: task["state"] for task in snapshot["tasks"]}


async def received(connection: ClientConnection, kind: str) -> Frame:
    """Wait for a frame of a type on a WebSocket, with nothing but transitions before it."""
    while True:
        frame: Frame = json.loads(await asyncio.wait_for(connection.recv(), DEADLINE))
        if frame["type"] == kind:
            return frame
        assert frame["type"] == "task"


async def test_a_restored_backup_causes_a_resync(primary: EmbeddedPostgres, database: str, run: RunKey) -> None:
    """The database has the same epoch and an older state."""
    with base_backup(primary, standby=False) as backup:
        async with (
            TcpProxy.listen(primary.port) as proxy,
            server_behind(proxy, database) as server,
            sse(server.url, run, WATCHED) as events,
            websocket(server.url, run, WATCHED) as connection,
        ):
            await events.next()
            await write(primary, database, run, ("ask", "scheduled"), ("ask", "queued"))
            await wait_for_state(events, "ask", "queued")

            await asyncio.to_thread(backup.start)
            await proxy.switch_to(backup.port)
            assert await wait_for_resync(events) == {"ask": None, "answer": None, "clean_up": None}
            await write(backup, database, run, ("answer", "scheduled"))
            await wait_for_state(events, "answer", "scheduled")
            await received(connection, "snapshot")
            await received(connection, "reset")
            assert states_in(await received(connection, "snapshot"))["ask"] is None
            await wait_until_ready(server.url)


async def test_ready_reports_an_empty_database_until_the_journal_is_back(
    primary: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    empty = create_database_from_airflow_template(primary)
    with base_backup(primary, standby=False) as other:
        await asyncio.to_thread(other.start)
        other.execute(f"DROP DATABASE {database}; ALTER DATABASE {empty} RENAME TO {database}")
        async with (
            TcpProxy.listen(primary.port) as proxy,
            server_behind(proxy, database) as server,
            sse(server.url, run, WATCHED) as events,
        ):
            await events.next()
            await proxy.switch_to(other.port)
            await wait_until_ready(server.url, ready=False, because="run `stream-server install`")
            await proxy.switch_to(primary.port)
            await wait_until_ready(server.url)
            await write(primary, database, run, ("ask", "scheduled"))
            frames = await wait_for_state(events, "ask", "scheduled")
            assert "reset" not in {frame["type"] for frame in frames}

            # Another journal, without rows of the run.
            await install_journal(other.url(database), "public", lock_timeout=5, attempts=1)
            await proxy.switch_to(other.port)
            *_, failure, last = await events.rest()
            assert (failure["reason"], last["type"]) == ("run_deleted", "end")
            await wait_until_ready(server.url)


async def test_a_promoted_standby_that_is_up_to_date_continues_the_stream(
    primary: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    with running_standby(primary) as standby:
        async with (
            TcpProxy.listen(primary.port) as proxy,
            server_behind(proxy, database) as server,
            sse(server.url, run, WATCHED) as events,
            websocket(server.url, run, WATCHED) as connection,
        ):
            await events.next()
            await write(primary, database, run, ("ask", "scheduled"), ("ask", "queued"))
            await wait_for_state(events, "ask", "queued")
            # Not sent yet when the primary is lost.
            await proxy.switch_to(None)
            await write(primary, database, run, ("ask", "running"))
            await asyncio.to_thread(catch_up, primary, standby)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(promote, standby)
            await proxy.switch_to(standby.port)
            await write(standby, database, run, ("ask", "success"))
            frames = await wait_for_state(events, "ask", "success")
            assert [(frame["type"], frame["state"]) for frame in frames] == [("task", "running"), ("task", "success")]
            snapshot = await received(connection, "snapshot")
            assert states_in(snapshot)["ask"] is None
            seen = [(await received(connection, "task"))["state"] for _ in range(4)]
            assert seen == ["scheduled", "queued", "running", "success"]
            await wait_until_ready(server.url, doorbell=True)


@pytest.mark.parametrize("sent_before", [True, False], ids=["sent", "in the snapshot"])
async def test_a_promoted_standby_that_lagged_reuses_transaction_ids(
    primary: EmbeddedPostgres, database: str, run: RunKey, *, sent_before: bool
) -> None:
    """Sent rows do not exist there, although their transaction ids do."""
    with running_standby(primary) as standby:
        await asyncio.to_thread(catch_up, primary, standby)
        await asyncio.to_thread(stop_following, standby)
        async with TcpProxy.listen(primary.port) as proxy:
            if not sent_before:
                lost = await write(primary, database, run, ("ask", "scheduled"), ("ask", "queued"))
            async with server_behind(proxy, database) as server, sse(server.url, run, WATCHED) as events:
                await events.next()
                if sent_before:
                    lost = await write(primary, database, run, ("ask", "scheduled"), ("ask", "queued"))
                    await wait_for_state(events, "ask", "queued")
                await proxy.switch_to(None)
                await wait_until_ready(server.url, ready=False)
                await asyncio.to_thread(primary.kill)
                await asyncio.to_thread(promote, standby)
                await write_under(lost, standby, database, run)
                await proxy.switch_to(standby.port)
                assert await wait_for_resync(events) == {"ask": None, "answer": "failed", "clean_up": None}
                await write(standby, database, run, ("clean_up", "scheduled"))
                assert states(await wait_for_state(events, "clean_up", "scheduled"), "clean_up") == ["scheduled"]
                await wait_until_ready(server.url)


@pytest.mark.parametrize("primary", [{"synchronous_commit": "off"}], indirect=True)
async def test_a_crash_that_loses_commits_causes_a_resync(
    primary: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    """Sent rows were committed but not written to disk. After a crash, other transactions reuse their ids."""
    async with (
        TcpProxy.listen(primary.port) as proxy,
        server_behind(proxy, database) as server,
        sse(server.url, run, WATCHED) as events,
    ):
        await events.next()
        primary.execute("CHECKPOINT")
        wal_writer = int(primary.execute(WAL_WRITER))
        os.kill(wal_writer, signal.SIGSTOP)
        lost = await write(primary, database, run, ("ask", "scheduled"), ("ask", "queued"))
        await wait_for_state(events, "ask", "queued")
        await proxy.switch_to(None)
        os.kill(wal_writer, signal.SIGKILL)
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(primary.start)
        await write_under(lost, primary, database, run)
        await proxy.switch_to(primary.port)
        assert await wait_for_resync(events) == {"ask": None, "answer": "failed", "clean_up": None}
        await wait_until_ready(server.url)


async def test_a_url_with_two_hosts_finds_the_new_primary(
    primary: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    with running_standby(primary) as standby:
        await asyncio.to_thread(catch_up, primary, standby)
        async with TcpProxy.listen(primary.port) as first, TcpProxy.listen(standby.port) as second:
            url = (
                f"postgresql+psycopg2://airflow@{LOOPBACK}:{second.port},{LOOPBACK}:{first.port}/{database}"
                "?target_session_attrs=read-write"
            )
            settings = Settings.load(database_url=url, port=0, grace_period=2.0)
            async with running_server(settings) as server:
                await wait_until_ready(server.url, doorbell=True)
                async with sse(server.url, run, WATCHED) as events:
                    await events.next()
                    await write(primary, database, run, ("ask", "scheduled"))
                    await wait_for_state(events, "ask", "scheduled")
                    await asyncio.to_thread(catch_up, primary, standby)
                    await asyncio.to_thread(primary.kill)
                    await wait_until_ready(server.url, ready=False)
                    await asyncio.to_thread(promote, standby)
                    await write(standby, database, run, ("ask", "queued"))
                    frames = await wait_for_state(events, "ask", "queued")
                    assert [frame["type"] for frame in frames] == ["task"]
                    await wait_until_ready(server.url, doorbell=True)


async def test_a_host_that_hangs_does_not_block_the_next_host(
    primary: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    async with TcpProxy.listen(None) as hung, TcpProxy.listen(primary.port) as sound:
        url = f"postgresql://airflow@{LOOPBACK}:{hung.port},{LOOPBACK}:{sound.port}/{database}"
        async with running_server(Settings.load(database_url=url, port=0, grace_period=2.0)) as server:
            await wait_until_ready(server.url, doorbell=True, within=30)
            assert hung.accepted > 0
            async with sse(server.url, run) as events:
                assert states_in(await events.next())["ask"] is None


async def test_memory_stays_flat_while_the_database_changes(primary: EmbeddedPostgres, database: str) -> None:
    field = await prepare_workload(primary.url(database), runs=4, instances=60)
    with base_backup(primary, standby=False) as backup:
        await asyncio.to_thread(backup.start)
        async with TcpProxy.listen(primary.port) as proxy:
            clients = Clients(url_through(proxy, database))
            try:
                await clients.start([*field.runs, *field.runs])
                await write_everywhere(primary, database)
                await eventually_async(lambda: all(line.reads for line in clients.lines), what="all clients have read")
                await fail_over(proxy, [backup, primary], database, clients)
                before = clients.megabytes
                for _ in range(2):
                    await fail_over(proxy, [backup, primary], database, clients)
                clients.check()
                assert clients.megabytes < before + GROWTH_MEGABYTES
            finally:
                await clients.stop()


async def fail_over(proxy: TcpProxy, servers: list[EmbeddedPostgres], database: str, clients: Clients) -> None:
    """Switch the server from one copy of the database to the next, each with a history of its own."""
    for postgres in servers:
        restarts = len(clients.lines[0].restarts)
        await write_everywhere(postgres, database)
        await proxy.switch_to(postgres.port)
        await eventually_async(
            lambda restarts=restarts: all(len(line.restarts) > restarts for line in clients.lines),  # type: ignore[misc]
            30,
            "every client got a reset",
        )


async def write_everywhere(postgres: EmbeddedPostgres, database: str) -> None:
    async with AirflowSql.open(postgres.url(database)) as airflow:
        await airflow.connection.execute("UPDATE task_instance SET try_number = try_number + 1")
