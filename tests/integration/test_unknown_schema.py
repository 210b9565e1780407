"""Tables of an Airflow that stream_server does not know, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import InstallError
from stream_server.journal.installer import disable_triggers, enable_triggers, fetch_status, install_journal
from stream_server.journal.status import SCHEMA_UNKNOWN
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import running_server
from support.streams import sse
from support.waiting import eventually_answered, eventually_async

RENAME = "ALTER TABLE task_instance RENAME COLUMN map_index TO mapped_position"
RENAME_BACK = "ALTER TABLE task_instance RENAME COLUMN mapped_position TO map_index"
MISSING = "they lack task_instance.map_index (revision {revision})"


async def install_now(url: str) -> None:
    await install_journal(url, "public", lock_timeout=1, attempts=1)


async def count_losses(airflow: AirflowSql) -> int:
    return int(await airflow.connection.fetchval("SELECT last_value + is_called::integer FROM stream_server.losses"))


async def test_a_trigger_switches_itself_off_at_a_missing_column(airflow: AirflowSql, run: RunKey) -> None:
    await airflow.connection.execute(RENAME)
    for _ in range(3):
        await airflow.heartbeat(run, "ask")
        await airflow.set_run(run, "running")
    assert await count_losses(airflow) == 1
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal WHERE state = 'running'") == 0


async def test_other_errors_switch_nothing_off(airflow: AirflowSql, run: RunKey) -> None:
    await airflow.connection.execute("ALTER TABLE stream_server.journal ADD CHECK (state <> 'running') NOT VALID")
    for task_id in ("ask", "answer"):
        await airflow.set_task(run, task_id, "running")
    assert await count_losses(airflow) == 2
    await airflow.set_task(run, "ask", "success")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal WHERE state = 'success'") == 1


async def test_install_refuses_tables_that_lack_a_column(airflow: AirflowSql, run: RunKey, journal: str) -> None:
    await airflow.connection.execute(RENAME)
    await airflow.connection.execute("UPDATE alembic_version SET version_num = 'abc'")
    with pytest.raises(InstallError) as refused:
        await install_now(journal)
    assert MISSING.format(revision="abc") in str(refused.value)
    assert "upgrade stream-server to a version that supports this Airflow" in str(refused.value)
    await airflow.heartbeat(run, "ask")
    assert (await fetch_status(journal)).problems[-1] == SCHEMA_UNKNOWN

    await airflow.connection.execute(RENAME_BACK)
    await install_now(journal)
    assert (await fetch_status(journal)).problems == []
    await airflow.set_task(run, "ask", "running")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal WHERE state = 'running'") == 1


async def test_enable_refuses_tables_that_lack_a_column(airflow: AirflowSql, journal: str) -> None:
    await disable_triggers(journal)
    await airflow.connection.execute(RENAME)
    with pytest.raises(InstallError, match=r"lack task_instance\.map_index"):
        await enable_triggers(journal)


async def test_a_server_is_not_ready_after_a_column_was_renamed(
    airflow: AirflowSql, run: RunKey, settings: Callable[..., Settings]
) -> None:
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.connection.execute(RENAME)

            async def find_problems() -> list[str]:
                await airflow.heartbeat(run, "ask")
                problems: list[str] = (await client.get("/ready")).json()["problems"]
                return problems

            async def reports_it() -> bool:
                problems = await find_problems()
                return any("lack task_instance.map_index" in one for one in problems) and SCHEMA_UNKNOWN in problems

            await eventually_answered(reports_it, 10, what="the server reports the missing column")
            assert "stream_server_schema_unknown 1.0" in (await client.get("/metrics")).text
        losses = await count_losses(airflow)
        for _ in range(20):
            await airflow.heartbeat(run, "ask")
        assert await count_losses(airflow) == losses == 1
        answer = await client.get(f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/stream")
        assert answer.status_code == 503, answer.text
        assert "lack task_instance.map_index" in answer.json()["detail"]


async def test_a_server_switches_the_triggers_on_when_the_column_is_back(
    airflow: AirflowSql, run: RunKey, journal: str, settings: Callable[..., Settings]
) -> None:
    """The column may be away and back between two checks, so that no server has seen it missing."""
    async with running_server(settings(check_interval=0.2)) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        async with sse(server.url, run) as events:
            await events.next()
            await airflow.connection.execute(RENAME)
            await airflow.heartbeat(run, "ask")
            await airflow.connection.execute(RENAME_BACK)
            await airflow.set_task(run, "ask", "queued")

            async def is_well() -> bool:
                return (await fetch_status(journal)).problems == []

            await eventually_answered(is_well, 10, what="the server switches the triggers on")
            await airflow.complete_chain(run)
            frames = await events.rest()
    assert frames[-2]["results"] == {"answer": {"text": "because"}}
    assert await count_losses(airflow) == 2


async def test_switching_the_triggers_on_counts_a_loss(airflow: AirflowSql, run: RunKey) -> None:
    """Each server resyncs then: the triggers have not recorded what was written meanwhile."""
    await airflow.connection.execute(RENAME)
    await airflow.heartbeat(run, "ask")
    await airflow.connection.execute(RENAME_BACK)
    await airflow.set_task(run, "ask", "queued")
    for _ in range(2):
        assert await airflow.connection.fetchval("SELECT stream_server.put_back(false)") == 0
        assert await count_losses(airflow) == 2
    await airflow.set_task(run, "ask", "running")
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal WHERE state = 'running'") == 1
