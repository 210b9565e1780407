"""The writer: transitions of one run's task instances, one transaction each, at a given rate."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql

CONNECTIONS = 8
"""Concurrent commits at most. One is enough except when the disk is slow."""

INSTANCES = 32
STATES = ("queued", "running")

# The unique try number is in the journal and in the frame, and identifies the transition.
UPDATE = (
    "UPDATE task_instance SET state = $2::text, try_number = $3, updated_at = clock_timestamp(),"
    " start_date = CASE WHEN $2::text = 'running' THEN clock_timestamp() ELSE start_date END WHERE id = $1"
)


class Commit(NamedTuple):
    """A committed transition, by the clock of all recorders (CLOCK_MONOTONIC)."""

    number: int
    sent: float
    """Just before its UPDATE was sent."""

    acked: float
    pid: int
    """The backend that committed it."""


async def add_run(database_url: str, key: RunKey) -> list[UUID]:
    """Write a DAG and a run of it, as Airflow does; return the task instances to change.

    All of them are upstream of the result task, so that each transition affects the outcome.
    """
    task_ids = [f"part_{number:02}" for number in range(INSTANCES)]
    async with AirflowSql.open(database_url) as airflow:
        version = await airflow.add_dag(key.dag_id, {**{task_id: ["answer"] for task_id in task_ids}, "answer": []})
        await airflow.trigger(key, version, [*task_ids, "answer"])
        await airflow.set_run(key, "running")
        rows = await airflow.connection.fetch(
            "SELECT id FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id <> 'answer' ORDER BY task_id",
            *key,
        )
    return [row["id"] for row in rows]


async def read_journal(database_url: str, key: RunKey) -> dict[int, int]:
    """Return the written transitions in the journal: number by seq."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT id, try_number FROM stream_server.journal"
            " WHERE kind = 'task' AND dag_id = $1 AND run_id = $2 AND try_number > 0",
            *key,
        )
    finally:
        await connection.close()
    return {row["id"]: row["try_number"] for row in rows}


async def write_transitions(
    database_url: str, instances: list[UUID], *, first: int, rate: float, count: int
) -> list[Commit]:
    """Write transitions in an open loop: each at its time, whether or not earlier ones are committed.

    Args:
        database_url: Airflow's database.
        instances: Task instances to change, in turn.
        first: Number of the first transition.
        rate: Transitions per second.
        count: Number of transitions, more than `CONNECTIONS`.
    """
    connections = [await asyncpg.connect(database_url) for _ in range(CONNECTIONS)]
    try:
        idle: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
        for connection in connections:
            statement = await connection.prepare(UPDATE)
            idle.put_nowait(_Connection(statement, connection.get_server_pid()))
        commits: list[Commit] = []

        async def commit(number: int) -> None:
            turn, instance = divmod(number - first, len(instances))
            connection = await idle.get()
            sent = time.monotonic()
            await connection.update.fetch(instances[instance], STATES[turn % len(STATES)], number)
            commits.append(Commit(number, sent, time.monotonic(), connection.pid))
            idle.put_nowait(connection)

        # A backend's first transition is its slowest, because it compiles the trigger's function.
        await asyncio.gather(*(commit(first + index) for index in range(CONNECTIONS)))
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = []
        for index in range(count - CONNECTIONS):
            await asyncio.sleep(max(0.0, began + index / rate - loop.time()))
            tasks.append(asyncio.create_task(commit(first + CONNECTIONS + index)))
        await asyncio.gather(*tasks)
        return sorted(commits)
    finally:
        for connection in connections:
            connection.terminate()


class _Connection(NamedTuple):
    update: asyncpg.prepared_stmt.PreparedStatement[Any]
    pid: int
