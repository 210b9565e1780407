"""Times that PostgreSQL can store and Python can't hold are read as null."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal.reader import JournalReader
from stream_server.journal.run_store import RunStore
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import running_server
from support.streams import sse
from support.waiting import eventually_async

UNUSUAL = ["15000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC", "0001-01-01 00:00:00+14", "infinity", "-infinity"]
LIMITS = ["0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"]


async def set_times(airflow: AirflowSql, time: str) -> None:
    """Set all times of the run and of one of its tasks, and change their states."""
    await airflow.connection.execute(
        f"UPDATE task_instance SET start_date = '{time}', end_date = '{time}', state = 'running' WHERE task_id = 'ask'"
    )
    await airflow.connection.execute(
        f"UPDATE dag_run SET queued_at = '{time}', start_date = '{time}', end_date = '{time}', state = 'running'"
    )


@pytest.mark.parametrize("time", [*UNUSUAL, *LIMITS])
async def test_the_tail_reads_rows_with_unusual_times(
    journal: str, airflow: AirflowSql, run: RunKey, time: str
) -> None:
    run_store = RunStore(journal, pool_size=1, max_result_bytes=0)
    async with JournalReader.open(journal) as reader:
        before = (await reader.read_head()).position
        await set_times(airflow, time)
        batch = await reader.read_after(before)
        assert not batch.skipped
        history = await run_store.read_history(run, before)
    await run_store.close()
    assert history == batch.transitions
    task, dag_run = batch.transitions
    for found in (task.start_date, task.end_date, dag_run.queued_at, dag_run.start_date, dag_run.end_date):
        assert (found is None) == (time in UNUSUAL)


@pytest.mark.parametrize("time", UNUSUAL)
async def test_runs_with_unusual_times_are_streamed_and_listed(
    settings: Callable[..., Settings], airflow: AirflowSql, run: RunKey, time: str
) -> None:
    await set_times(airflow, time)
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            snapshot = await events.next()
        async with httpx.AsyncClient(base_url=server.url) as client:
            (listed,) = (await client.get("/api/v2/stream/runs")).json()["runs"]
    (task,) = (one for one in snapshot["tasks"] if one["task_id"] == "ask")
    assert (task["start_date"], task["end_date"]) == (None, None)
    for found in (snapshot["run"], listed):
        assert (found["state"], found["queued_at"], found["start_date"], found["end_date"]) == (
            "running",
            None,
            None,
            None,
        )
