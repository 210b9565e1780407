"""A run that does not proceed: clients get the reason."""

from __future__ import annotations

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.hub import watched_runs
from stream_server.journal.queries import load_server_queries
from stream_server.journal.run_store import RunStore
from support.airflow_sql import CHAIN, AirflowSql
from support.server import RunningServer
from support.streams import sse, types
from support.waiting import eventually_answered


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_runs, "WAITING_CHECK_SECONDS", 0.05)


async def pause(airflow: AirflowSql, key: RunKey, *, is_paused: bool = True) -> None:
    await airflow.connection.execute("UPDATE dag SET is_paused = $2 WHERE dag_id = $1", key.dag_id, is_paused)


async def permit_one_run(airflow: AirflowSql, key: RunKey) -> None:
    await airflow.connection.execute("UPDATE dag SET max_active_runs = 1 WHERE dag_id = $1", key.dag_id)


async def is_waiting(client: httpx.AsyncClient, key: RunKey, waiting: dict[str, object] | None) -> bool:
    answer = await client.get(f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/result?timeout=0.3")
    assert answer.status_code == 202
    return bool(answer.json().get("waiting") == waiting)


async def test_a_stream_names_the_paused_dag_until_it_is_unpaused(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await pause(airflow, run)
    async with sse(server.url, run) as events:
        assert types(await events.until("waiting")) == ["snapshot", "waiting"]
        async with sse(server.url, run) as late:
            first, second = await late.next(), await late.next()
            assert (first["type"], second["type"], second["reason"]) == ("snapshot", "waiting", "dag_paused")
        await pause(airflow, run, is_paused=False)
        (frame,) = await events.until("waiting")
        assert frame["reason"] is None
        await airflow.set_run(run, "running")
        await airflow.set_run(run, "success")
        assert "waiting" not in types(await events.rest())


async def test_a_resuming_client_gets_the_reason(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        cursor = events.ids[-1] or ""
        await pause(airflow, run)
        await events.until("waiting")
        async with sse(server.url, run, "", {"Last-Event-ID": cursor}) as resumed:
            assert types(await resumed.until("waiting")) == ["resumed", "waiting"]


async def test_a_dag_that_is_paused_between_two_tasks_is_named(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.set_run(run, "running")
    async with sse(server.url, run) as events:
        await events.next()
        await airflow.start_task(run, "ask")
        await pause(airflow, run)
        await airflow.set_task(run, "ask", "success")
        frames = await events.until("waiting")
    assert (frames[-2]["state"], frames[-1]["reason"]) == ("success", "dag_paused")


async def test_the_answer_of_a_queued_run_has_the_number_of_active_runs(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    other = RunKey(run.dag_id, "other")
    await airflow.trigger(other, await airflow.add_dag(run.dag_id, CHAIN), list(CHAIN))
    await airflow.set_run(other, "running")
    await permit_one_run(airflow, run)
    async with sse(server.url, run) as events, httpx.AsyncClient(base_url=server.url) as client:
        frame = (await events.until("waiting"))[-1]
        assert (frame["reason"], frame["active_runs"]) == ("active_runs", 1)
        await eventually_answered(lambda: is_waiting(client, run, {"reason": "active_runs", "active_runs": 1}))
        await airflow.set_run(other, "success")
        await eventually_answered(lambda: is_waiting(client, run, None))


async def set_pool(airflow: AirflowSql, name: str, slots: int) -> None:
    await airflow.connection.execute(
        "INSERT INTO slot_pool (pool, slots, include_deferred) VALUES ($1, $2, false)"
        " ON CONFLICT (pool) DO UPDATE SET slots = excluded.slots",
        name,
        slots,
    )


async def test_a_run_that_waits_for_slots_names_the_pool(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    other = RunKey(run.dag_id, "other")
    await airflow.trigger(other, await airflow.add_dag(run.dag_id, CHAIN), list(CHAIN))
    for key in (run, other):
        await airflow.set_run(key, "running")
    await airflow.connection.execute("UPDATE task_instance SET pool = 'gpu', pool_slots = 2")
    await set_pool(airflow, "gpu", 3)
    await airflow.start_task(other, "ask")
    await airflow.set_task(run, "ask", "scheduled")
    expected = {"reason": "pool", "pool": "gpu", "slots": 3, "occupied": 2, "needed": 2}
    async with sse(server.url, run) as events, httpx.AsyncClient(base_url=server.url) as client:
        frame = (await events.until("waiting"))[-1]
        assert {name: frame[name] for name in expected} == expected
        await eventually_answered(lambda: is_waiting(client, run, expected))
        await airflow.connection.execute("DELETE FROM slot_pool WHERE pool = 'gpu'")
        await eventually_answered(lambda: is_waiting(client, run, {"reason": "pool", "pool": "gpu", "needed": 2}))
        await set_pool(airflow, "gpu", -1)
        await eventually_answered(lambda: is_waiting(client, run, None))


async def test_a_run_with_a_task_that_gets_its_slots_does_not_wait(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.set_run(run, "running")
    for task_id, pool, slots in (("ask", "full", 0), ("answer", "free", 1)):
        await set_pool(airflow, pool, slots)
        await airflow.set_task(run, task_id, "scheduled")
        await airflow.connection.execute("UPDATE task_instance SET pool = $1 WHERE task_id = $2", pool, task_id)
    runs = RunStore(journal, pool_size=1, max_result_bytes=0)
    assert await runs.read_waiting([run]) == {}
    await airflow.start_task(run, "answer")
    (found,) = (await runs.read_waiting([run])).values()
    await runs.close()
    assert (found.pool, found.slots, found.occupied) == ("full", 0, 0)
    unable = load_server_queries("public", has_tries=False, with_requests=True, with_pools=False)
    assert await airflow.connection.fetch(unable["waiting_runs"], [run.dag_id], [run.run_id]) == []
