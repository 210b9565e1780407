"""A server behind PgBouncer: in transaction mode it polls, reports it, and leaves no trace in shared sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import asyncpg
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.lossless_tails import TaskTail, reconnect_quickly
from support.lossless_writers import prepare_workload, read_journal
from support.pgbouncer import get_version, running_pgbouncer
from support.readiness import wait_until_ready
from support.server import running_server
from support.streams import sse, states, types, websocket
from support.waiting import eventually_async

POLLING = (
    "A pooler assigns each transaction to another session, so LISTEN does not work: polling every 0.5 s instead. Use a"
    " URL of PostgreSQL itself, or of a pool in session mode"
)
BY_POLLING = {"connected": True, "doorbell": False}
ROUND_ROBIN = "server_round_robin = 1"

# The names of asyncpg's first statements in a process.
TAKEN = "".join(f"PREPARE __asyncpg_stmt_{number:x}__ AS SELECT 'not yours';" for number in range(1, 17))

TRACES = """
SELECT jsonb_build_object(
    -- A pooler sets the application name of each client.
    'settings', (SELECT jsonb_object_agg(name, setting) FROM pg_settings
                 WHERE source = 'session' AND name <> 'application_name'),
    'listens', ARRAY(SELECT pg_listening_channels()),
    'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
    'statements', ARRAY(SELECT name FROM pg_prepared_statements)
)::text
"""


def pooler_options() -> list[str]:
    """Return configuration lines for each way to treat prepared statements that this PgBouncer has."""
    return ["max_prepared_statements = 0", "max_prepared_statements = 50"] if get_version() >= (1, 21) else [""]


async def read_traces(postgres: EmbeddedPostgres, url: str, sessions: int) -> set[str]:
    """Return the session state in `sessions` sessions of a pool."""
    connections = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(sessions)]
    found = set()
    for connection in connections:
        # Kept open, so that each has a session of its own.
        await connection.execute("BEGIN")
        found.add(await connection.fetchval(TRACES))
    for connection in connections:
        await connection.execute("COMMIT")
        await connection.close()
    return found


@pytest.mark.parametrize("pool_size", [1, 3])
async def test_the_server_polls_and_reports_it(
    postgres: EmbeddedPostgres,
    journal: str,
    settings: Callable[..., Settings],
    airflow: AirflowSql,
    run: RunKey,
    caplog: pytest.LogCaptureFixture,
    pool_size: int,
) -> None:
    for options in pooler_options():
        caplog.clear()
        key = RunKey("chat", f"{run.run_id}_{options[-2:].strip()}")
        version_id = await airflow.connection.fetchval("SELECT id FROM dag_version")
        await airflow.trigger(key, version_id, ["answer"])
        with (
            running_pgbouncer(postgres, "transaction", pool_size=pool_size, options=options) as bouncer,
            caplog.at_level(logging.WARNING),
        ):
            url = bouncer.url(journal)
            async with running_server(settings(database_url=url)) as server:
                assert (await wait_until_ready(server.url))["tail"] == BY_POLLING
                async with sse(server.url, key) as events, websocket(server.url, key) as connection:
                    await airflow.run_task(key, "answer", "through the pool")
                    frames = await events.rest()
                    await connection.wait_closed()
        assert states(frames, "answer")[:3] == ["scheduled", "queued", "running"]
        assert frames[-2]["results"] == {"answer": "through the pool"}
        assert [record.getMessage() for record in caplog.records] == [POLLING]


@pytest.mark.parametrize("options", ["", ROUND_ROBIN])
async def test_the_server_leaves_no_trace_in_shared_sessions(
    postgres: EmbeddedPostgres,
    journal: str,
    settings: Callable[..., Settings],
    airflow: AirflowSql,
    run: RunKey,
    options: str,
) -> None:
    with running_pgbouncer(postgres, "transaction", pool_size=2, options=options) as bouncer:
        url = bouncer.url(journal)
        before = await read_traces(postgres, url, 2)
        async with running_server(settings(database_url=url, retention="1h", check_interval="50ms")) as server:
            await wait_until_ready(server.url)
            async with sse(server.url, run) as events:
                await airflow.run_task(run, "answer", "quietly")
                assert (await events.rest())[-2]["results"] == {"answer": "quietly"}
            assert await read_traces(postgres, url, 2) == before


async def test_prepared_statements_of_other_clients_are_not_reused(
    postgres: EmbeddedPostgres,
    journal: str,
    settings: Callable[..., Settings],
    airflow: AirflowSql,
    run: RunKey,
) -> None:
    with running_pgbouncer(postgres, "transaction", pool_size=1) as bouncer:
        url = bouncer.url(journal)
        other = await asyncpg.connect(url, statement_cache_size=0)
        await other.execute(TAKEN)
        async with running_server(settings(database_url=url)) as server:
            await wait_until_ready(server.url)
            async with sse(server.url, run) as events:
                await airflow.run_task(run, "answer", "ours")
                assert (await events.rest())[-2]["results"] == {"answer": "ours"}
        await other.close()


async def test_the_connection_pool_does_not_reset_shared_sessions(
    postgres: EmbeddedPostgres, journal: str, run: RunKey
) -> None:
    """As with a pool of one session that another client relies on."""
    with running_pgbouncer(postgres, "transaction", pool_size=1) as bouncer:
        url = bouncer.url(journal)
        other = await asyncpg.connect(url, statement_cache_size=0)
        await other.execute("SET work_mem = '7MB'")
        await other.execute("SELECT pg_advisory_lock(4711)")
        runs = RunStore(url, pool_size=2, max_result_bytes=1000)
        state, _ = await runs.read_run(run)
        await runs.close()
        assert state.task_ids == {"ask", "answer", "clean_up"}
        assert await other.fetchval("SHOW work_mem") == "7MB"
        assert await other.fetchval("SELECT count(*) FROM pg_locks WHERE objid = 4711") == 1
        await other.close()


async def test_notifications_arrive_through_a_pool_in_session_mode(
    postgres: EmbeddedPostgres, journal: str, settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    with running_pgbouncer(postgres, "session", pool_size=10) as bouncer:
        async with running_server(settings(database_url=bouncer.url(journal), poll_interval="1h")) as server:
            await wait_until_ready(server.url, doorbell=True)
            async with sse(server.url, run) as events:
                await airflow.run_task(run, "answer", "notified")
                assert (await events.rest())[-2]["results"] == {"answer": "notified"}


async def test_nothing_is_lost_through_a_pool(postgres: EmbeddedPostgres, journal: str) -> None:
    field = await prepare_workload(journal, runs=2, instances=20)
    with running_pgbouncer(postgres, "transaction", pool_size=3) as bouncer, reconnect_quickly():
        tail = TaskTail(bouncer.url(journal), "tail behind a pool")
        await tail.start()
        try:
            await eventually_async(lambda: tail.line.reads, what="the tail follows")
            async with AirflowSql.open(journal) as late, AirflowSql.open(journal) as soon:
                for number in range(10):
                    transaction = late.connection.transaction()
                    await transaction.start()
                    await late.set_task(field.runs[0], "work", "running", map_index=number)
                    await soon.set_task(field.runs[1], "work", "running", map_index=number)
                    reads = tail.line.reads
                    await eventually_async(lambda reads=reads: tail.line.reads > reads)  # type: ignore[misc]
                    await transaction.commit()
            journal_rows = await read_journal(journal, field)
            await eventually_async(lambda: tail.line.complete(journal_rows), what="every row has arrived")
            assert len(tail.line.rows) == len(journal_rows) == 20
            assert tail.line.restarts == []
        finally:
            await tail.stop()


async def test_a_restarted_pooler_loses_nothing(
    postgres: EmbeddedPostgres, journal: str, settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey
) -> None:
    with running_pgbouncer(postgres, "transaction", pool_size=3) as bouncer:
        async with running_server(settings(database_url=bouncer.url(journal))) as server:
            await wait_until_ready(server.url)
            async with sse(server.url, run) as events:
                await events.next()
                await asyncio.to_thread(bouncer.stop)
                await wait_until_ready(server.url, ready=False, because="PostgreSQL does not answer")
                await airflow.run_task(run, "ask", "why")
                await asyncio.to_thread(bouncer.start)
                await wait_until_ready(server.url)
                await airflow.run_task(run, "answer", "because")
                frames = await events.rest()
    assert states(frames, "ask") == ["scheduled", "queued", "running", "success"]
    assert types(frames)[-2:] == ["result", "end"]
    assert "reset" not in types(frames)
