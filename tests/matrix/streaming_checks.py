"""Checks that streaming works on a database."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from matrix.versioned_sql import LEAVES, VersionedSql, request_human_input
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import fetch_status
from stream_server.settings import Settings
from support.airflow_sql import CHAIN
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Frame, sse, states
from support.waiting import eventually_answered, eventually_async

NEVER = 3600.0
"""A check interval in which no trigger is restored, however long Airflow's commands take."""

FREQUENT_CHECKS = 0.1
"""A check interval that is shorter than Airflow's commands."""

RESYNCS = 3
"""Most resyncs after triggers that had switched themselves off: one for the triggers, and two for the writes that they
dropped. The last waits for the transactions of that time, and so may come while a run is streamed."""

_numbers = itertools.count(1)


@asynccontextmanager
async def running_server_on(url: str, check_interval: float = NEVER) -> AsyncIterator[RunningServer]:
    """Start a new server on a database."""
    settings = Settings.load(database_url=url, port=0, grace_period=2.0, check_interval=check_interval)
    async with running_server(settings) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


async def get_readiness(server: RunningServer) -> tuple[int, list[str]]:
    """Return the status code and the problems of `/ready`."""
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as client:
        answer = await client.get("/ready")
    return answer.status_code, answer.json()["problems"]


async def assert_triggers_restored(url: str) -> None:
    """Check that the server restores missing triggers."""

    async def complete() -> bool:
        return not (await fetch_status(url)).problems

    await eventually_answered(complete, DEADLINE, what="a complete journal")


async def trigger_new_run(airflow: VersionedSql, tasks: dict[str, list[str]], teardowns: dict[str, bool]) -> RunKey:
    """Trigger a run of a new DAG."""
    key = RunKey(f"chat_{next(_numbers)}", "manual__2026-11-22T10:00:00+00:00")
    await airflow.trigger(key, await airflow.add_dag(key.dag_id, tasks, teardowns), list(tasks))
    return key


async def _stream_new_run(url: str, server: RunningServer) -> tuple[RunKey, list[Frame]]:
    """Run a new DAG up to its result; return the frames after the snapshot."""
    async with VersionedSql.open(url) as airflow:
        key = await trigger_new_run(airflow, CHAIN, {"clean_up": False})
        async with sse(server.url, key) as events:
            assert (await events.next())["type"] == "snapshot"
            await airflow.set_run(key, "running")
            await airflow.run_task(key, "ask", {"question": "why"})
            await airflow.start_task(key, "answer")
            await airflow.push(key, "answer", {"text": "because"})
            return key, await events.rest()


async def assert_streams(url: str, server: RunningServer, *, losses: int = 0) -> None:
    """Check that a new run is streamed from its first transition to its result, before its task succeeds.

    Args:
        url: The database.
        server: A server on it.
        losses: The losses before, where triggers had switched themselves off.
    """
    key, frames = await _stream_new_run(url, server)
    for _ in range(RESYNCS if losses else 0):
        if all(frame["type"] != "reset" for frame in frames):
            break
        key, frames = await _stream_new_run(url, server)
    assert states(frames, "ask") == ["scheduled", "queued", "running", "success"]
    assert [frame["state"] for frame in frames if frame["type"] == "run"] == ["running"]
    assert frames[-2]["results"] == {"answer": {"text": "because"}}
    assert frames[-1]["outcome"] == "result"
    assert (await fetch_status(url)).losses == losses
    assert await results_for_late_client(server, key) == {"answer": {"text": "because"}}


async def assert_native_marks(url: str, server: RunningServer) -> None:
    """Check that a natively marked value is the result at the end of the run, also for a client that joins late."""
    async with VersionedSql.open(url) as airflow:
        key = await trigger_new_run(airflow, LEAVES, {})
        async with sse(server.url, key) as events:
            assert (await events.next())["result_tasks"] == []
            await airflow.start_task(key, "answer")
            await airflow.push(key, "answer", 42, dag_result=True)
            await airflow.set_run(key, "success")
            assert (await events.rest())[-2]["results"] == {"answer": 42}
    assert await results_for_late_client(server, key) == {"answer": 42}


async def assert_asks(url: str, server: RunningServer) -> None:
    """Check that the request for human input of a running task is streamed."""
    async with VersionedSql.open(url) as airflow:
        key = await trigger_new_run(airflow, LEAVES, {})
        async with sse(server.url, key, "?until=run") as events:
            await events.until("snapshot")
            await airflow.start_task(key, "ask")
            await request_human_input(airflow, key, "ask")
            assert (await events.until("input"))[-1]["task_id"] == "ask"


async def results_for_late_client(server: RunningServer, key: RunKey) -> object:
    """Return the results that a client gets that joins after the result."""
    async with sse(server.url, key) as events:
        return (await events.until("result"))[-1]["results"]
