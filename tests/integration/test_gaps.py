"""Rows that are missing from the journal are detected, and cause a resync."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalMissing, JournalUnreachable
from stream_server.journal import run_store
from stream_server.journal.installer import disable_triggers, enable_triggers, fetch_status, install_journal
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server, terminate_connections
from support.streams import Events, Frame, sse
from support.waiting import eventually_answered, eventually_async

REVOKE_INSERT = "REVOKE INSERT ON stream_server.journal FROM airflow"
GRANT_INSERT = "GRANT INSERT ON stream_server.journal TO airflow"


@pytest.fixture
def fast_settings(settings: Callable[..., Settings]) -> Settings:
    """Settings of a server that checks often."""
    return settings(poll_interval="50ms", check_interval="50ms")


async def wait_for_resync(events: Events) -> Frame:
    """Wait for a reset because of lost transitions; return the snapshot after it."""
    reset = (await events.until("reset"))[-1]
    assert reset["reason"] == "transitions_lost"
    snapshot = await events.next()
    assert snapshot["type"] == "snapshot"
    return snapshot


def state_of(snapshot: Frame, task_id: str) -> str | None:
    states: dict[str, str | None] = {task["task_id"]: task["state"] for task in snapshot["tasks"]}
    return states[task_id]


async def wait_for_state(events: Events, task_id: str, state: str) -> None:
    """Wait until a task's state arrives, in a transition or in the snapshot of another resync."""
    while True:
        frame = await events.next()
        if frame["type"] == "task" and (frame["task_id"], frame["state"]) == (task_id, state):
            return
        if frame["type"] == "snapshot" and state_of(frame, task_id) == state:
            return


async def is_empty(airflow: AirflowSql) -> bool:
    return bool(await airflow.connection.fetchval("SELECT count(*) = 0 FROM stream_server.journal"))


async def test_a_new_snapshot_has_what_the_triggers_could_not_record(
    journal: str, airflow: AirflowSql, fast_settings: Settings, run: RunKey
) -> None:
    async with running_server(fast_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.connection.execute(REVOKE_INSERT)
            await airflow.set_task(run, "ask", "scheduled")
            await airflow.connection.execute(GRANT_INSERT)
            assert state_of(await wait_for_resync(events), "ask") == "scheduled"
            await airflow.run_task(run, "answer", "recovered")
            assert (await events.until("result"))[-1]["results"] == {"answer": "recovered"}
    assert (await fetch_status(journal)).losses >= 1


async def test_a_gap_that_commits_late_causes_a_resync_after_its_commit(
    airflow: AirflowSql, fast_settings: Settings, run: RunKey
) -> None:
    async with running_server(fast_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            transaction = airflow.connection.transaction()
            await transaction.start()
            await airflow.connection.execute(REVOKE_INSERT)
            await airflow.set_task(run, "ask", "scheduled")
            await airflow.connection.execute(GRANT_INSERT)
            assert state_of(await wait_for_resync(events), "ask") is None
            await transaction.commit()
            assert state_of(await wait_for_resync(events), "ask") == "scheduled"


async def test_missing_triggers_are_restored(airflow: AirflowSql, fast_settings: Settings, run: RunKey) -> None:
    async with running_server(fast_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            async with airflow.connection.transaction():
                await airflow.connection.execute("DROP TRIGGER stream_server_task ON task_instance")
                await airflow.set_task(run, "ask", "scheduled")
            assert state_of(await wait_for_resync(events), "ask") == "scheduled"
            await airflow.set_task(run, "ask", "queued")
            await wait_for_state(events, "ask", "queued")


async def test_triggers_are_switched_off_and_on_beside_a_long_transaction(
    journal: str, airflow: AirflowSql, fast_settings: Settings, run: RunKey
) -> None:
    async with running_server(fast_settings) as server, AirflowSql.open(journal) as other:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            transaction = other.connection.transaction()
            await transaction.start()
            await other.set_task(run, "clean_up", "scheduled")

            await asyncio.wait_for(disable_triggers(journal), 5)
            rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
            await airflow.set_task(run, "ask", "scheduled")
            assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == rows
            assert (await fetch_status(journal)).problems == [
                "the triggers are disabled; run `stream-server triggers enable`"
            ]
            await install_journal(journal, "public", lock_timeout=1, attempts=1)
            assert (await fetch_status(journal)).enabled is False

            await asyncio.wait_for(enable_triggers(journal), 5)
            # Disabling the triggers made the stream resync, too.
            while state_of(await wait_for_resync(events), "ask") != "scheduled":
                continue
            await transaction.commit()
            await airflow.set_task(run, "ask", "queued")
            await wait_for_state(events, "ask", "queued")
    assert (await fetch_status(journal)).problems == []


def test_the_commands_switch_the_triggers(journal: str) -> None:
    for action, code in (("disable", 1), ("enable", 0)):
        for arguments, expected in ((("triggers", action), 0), (("status",), code)):
            done = subprocess.run(
                [sys.executable, "-m", "stream_server", *arguments, "--database-url", journal],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == expected, done.stderr


@pytest.mark.parametrize("action", ["disable", "enable"])
async def test_the_commands_fail_without_a_journal(airflow_database: str, action: str) -> None:
    with pytest.raises(JournalMissing, match="run `stream-server install`"):
        await {"disable": disable_triggers, "enable": enable_triggers}[action](airflow_database)


async def test_old_rows_are_pruned_in_batches_and_streams_go_on(
    journal: str, airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    await airflow.connection.execute(
        "INSERT INTO stream_server.journal (kind, at) SELECT 'task', now() - interval '2 hours'"
        " FROM generate_series(1, 2500)"
    )
    runs = RunStore(journal, pool_size=2, max_result_bytes=0)
    pruned = [await runs.prune_journal(3600, 1000) for _ in range(4)]
    assert max(pruned) <= 1000
    assert (sum(pruned), pruned[-1]) == (2500, 0)
    await runs.close()
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == 4

    async with running_server(settings(retention="100ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.set_task(run, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"
            await eventually_answered(lambda: is_empty(airflow), what="an empty journal")
            await airflow.run_task(run, "answer", "still there")
            assert (await events.rest())[-2]["results"] == {"answer": "still there"}


async def test_two_replicas_do_not_prune_at_once(journal: str, airflow: AirflowSql) -> None:
    await airflow.connection.execute(
        "INSERT INTO stream_server.journal (kind, at) SELECT 'task', now() - interval '2 hours'"
    )
    runs = RunStore(journal, pool_size=1, max_result_bytes=0)
    async with airflow.connection.transaction():
        await airflow.connection.execute("SELECT pg_advisory_xact_lock(hashtext('stream_server prune'))")
        assert await runs.prune_journal(3600, 10) == 0
    assert await runs.prune_journal(3600, 10) == 1
    await runs.close()


async def test_a_pool_in_use_is_waited_for_a_bounded_time(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_store, "POOL_TIMEOUT_SECONDS", 0.1)
    runs = RunStore(journal, pool_size=1, max_result_bytes=0)
    await runs.read_snapshot()
    async with runs.acquire_connection():
        with pytest.raises(JournalUnreachable):
            await runs.read_snapshot()
    await runs.read_snapshot()
    await runs.close()


async def test_the_queue_for_the_pool_is_bounded(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_store, "MAX_QUEUED", 2)
    runs = RunStore(journal, pool_size=1, max_result_bytes=0)
    async with runs.acquire_connection():
        reads = [asyncio.create_task(runs.read_snapshot()) for _ in range(5)]
        await eventually_async(lambda: sum(read.done() for read in reads) == 3, what="the others are refused at once")
    answers = await asyncio.gather(*reads, return_exceptions=True)
    assert [isinstance(answer, JournalUnreachable) for answer in answers] == [False, False, True, True, True]
    await runs.read_snapshot()
    await runs.close()


async def test_a_server_disconnected_for_longer_than_the_retention_resyncs(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        async with airflow.connection.transaction():
            # As if the server was down when the row was written and pruned.
            await airflow.set_task(run, "ask", "scheduled")
            await terminate_connections(airflow.connection)
            await airflow.connection.execute("SELECT stream_server.prune('0', 1000)")
        assert state_of(await wait_for_resync(events), "ask") == "scheduled"


async def test_rows_deleted_before_the_tail_read_them_cause_a_resync(
    airflow: AirflowSql, fast_settings: Settings, run: RunKey
) -> None:
    """As after a suspend of the server that lasts longer than the retention."""
    async with running_server(fast_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await events.next()
            async with airflow.connection.transaction():
                await airflow.set_task(run, "ask", "scheduled")
                await airflow.connection.execute(
                    "DELETE FROM stream_server.journal; UPDATE stream_server.meta SET pruned_to = pg_current_xact_id()"
                )
            assert state_of(await wait_for_resync(events), "ask") == "scheduled"
            await airflow.set_task(run, "ask", "queued")
            await wait_for_state(events, "ask", "queued")


async def test_a_gap_before_the_first_read_is_detected(
    airflow: AirflowSql, fast_settings: Settings, run: RunKey
) -> None:
    async with running_server(fast_settings) as server:
        await eventually_async(lambda: server.hub.is_live)
        # The tail has started, but may have read nothing yet.
        await airflow.connection.execute(REVOKE_INSERT)
        await airflow.set_task(run, "ask", "scheduled")
        await airflow.connection.execute(GRANT_INSERT)
        async with sse(server.url, run) as events:
            await wait_for_state(events, "ask", "scheduled")
