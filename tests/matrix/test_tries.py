"""Airflow 3.4, in which each try of a task is a row: the journal, and frames equal to those of Airflow 3.3."""

from __future__ import annotations

from typing import Any

from matrix.airflow_processes import NEWEST
from matrix.environments import HAS_UPCOMING, UPCOMING
from matrix.streaming_checks import running_server_on
from matrix.tries_sql import TriesSql
from matrix.upgraded_databases import UpgradedDatabases
from matrix.versioned_sql import VersionedSql
from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN
from support.skipping import skip_or_fail
from support.streams import sse

if not HAS_UPCOMING:
    skip_or_fail("Airflow 3.4 needs Python 3.11 or newer")

KEY = RunKey("tries", "manual__2026-11-30T10:00:00+00:00")
VARYING = {"at", "cursor", "start_date", "end_date", "queued_at", "seq"}


async def write_history(airflow: VersionedSql) -> None:
    """Retry, expand, defer, clear while running and when done: each kind of transition of a try."""
    version = await airflow.connection.fetchval("SELECT created_dag_version_id FROM dag_run WHERE dag_id = $1", "tries")
    await airflow.set_run(KEY, "running")
    await airflow.start_task(KEY, "ask")
    await airflow.heartbeat(KEY, "ask")
    await airflow.emit_output(KEY, "ask", 0, "a", "b")
    await airflow.set_task(KEY, "ask", "up_for_retry")
    await airflow.start_task(KEY, "ask")
    await airflow.emit_output(KEY, "ask", 0, "c", try_number=2)
    await airflow.set_task(KEY, "ask", "deferred")
    await airflow.start_task(KEY, "ask")
    await airflow.push(KEY, "ask", {"question": "why"})
    await airflow.set_task(KEY, "ask", "success")
    await airflow.expand(KEY, version, "answer", 2)
    for map_index in range(2):
        await airflow.run_task(KEY, "answer", map_index, map_index)
    await airflow.run_task(KEY, "clean_up", None)
    await airflow.set_run(KEY, "success")


def comparable(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the transitions in order, then results and output. When a reset or a value is sent depends on timing."""
    transitions = [without_times(frame) for frame in frames if frame["type"] in {"task", "run", "end"}]
    others = [without_times(frame) for frame in frames if frame["type"] in {"result", "chunk"}]
    return [*transitions, *sorted((one for n, one in enumerate(others) if one not in others[:n]), key=str)]


def without_times(value: Any) -> Any:  # JSON
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in VARYING}
    return [without_times(part) for part in value] if isinstance(value, list) else value


async def stream_history(url: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the frames of the history, and the snapshot of a client that comes after it was cleared."""
    async with running_server_on(url) as server, VersionedSql.open(url) as airflow:
        await airflow.trigger(KEY, await airflow.add_dag(KEY.dag_id, CHAIN, {"clean_up": False}), list(CHAIN))
        async with sse(server.url, KEY, "?until=run") as events:
            assert (await events.next())["type"] == "snapshot"
            await write_history(airflow)
            frames = await events.rest()
        await airflow.clear(KEY, ["ask", "answer"])
        async with sse(server.url, KEY) as events:
            return comparable(frames), without_times(await events.next())


async def test_frames_and_snapshots_equal_those_of_the_version_before(databases: UpgradedDatabases) -> None:
    frames, snapshot = await stream_history(await databases.copy_of(NEWEST))
    assert [frame["try_number"] for frame in frames if frame.get("state") == "up_for_retry"] == [1]
    assert await stream_history(await databases.copy_of(UPCOMING)) == (frames, snapshot)


async def test_a_restarted_task_has_no_false_transition(databases: UpgradedDatabases) -> None:
    async with VersionedSql.open(await databases.copy_of(UPCOMING)) as airflow:
        assert isinstance(airflow, TriesSql)
        await airflow.trigger(KEY, await airflow.add_dag(KEY.dag_id, CHAIN), list(CHAIN))
        await airflow.start_task(KEY, "ask")
        await airflow.clear(KEY, ["ask"])
        await airflow.complete_restart(KEY, "ask")
        await airflow.set_task(KEY, "ask", "scheduled")
        rows = await task_rows(airflow, "ask")
    assert rows[-3:] == [(1, "restarting", "running"), (1, None, "restarting"), (2, "scheduled", None)]


async def test_rows_of_archived_tries_are_not_recorded(databases: UpgradedDatabases) -> None:
    async with VersionedSql.open(await databases.copy_of(UPCOMING)) as airflow:
        assert isinstance(airflow, TriesSql)
        await airflow.trigger(KEY, await airflow.add_dag(KEY.dag_id, CHAIN), list(CHAIN))
        await airflow.start_task(KEY, "ask")
        await airflow.set_task(KEY, "ask", "up_for_retry")
        before = await airflow.count("stream_server.journal")
        await airflow.connection.execute(
            "INSERT INTO xcom_v2 (id, task_instance_id, key, value, timestamp)"
            " SELECT gen_random_uuid(), id, 'return_value', '1', now() FROM task_instance"
            " WHERE dag_id = $1 AND working_set IS NULL",
            KEY.dag_id,
        )
        await airflow.connection.execute(
            "UPDATE task_instance SET state = 'success' WHERE dag_id = $1 AND working_set IS NULL", KEY.dag_id
        )
        await airflow.connection.execute(
            "DELETE FROM task_instance WHERE dag_id = $1 AND working_set IS NULL", KEY.dag_id
        )
        assert await airflow.count("stream_server.journal") == before


async def test_an_instance_without_a_successor_changes_the_run(databases: UpgradedDatabases) -> None:
    async with VersionedSql.open(await databases.copy_of(UPCOMING)) as airflow:
        assert isinstance(airflow, TriesSql)
        await airflow.trigger(KEY, await airflow.add_dag(KEY.dag_id, CHAIN), list(CHAIN))
        await airflow.start_task(KEY, "ask")
        await airflow.supersede(KEY, "ask")
        kind = await airflow.connection.fetchval("SELECT kind FROM stream_server.journal ORDER BY id DESC LIMIT 1")
    assert kind == "run_changed"


async def test_instances_that_are_deleted_with_their_trigger_change_the_run(databases: UpgradedDatabases) -> None:
    async with VersionedSql.open(await databases.copy_of(UPCOMING)) as airflow:
        await airflow.trigger(KEY, await airflow.add_dag(KEY.dag_id, CHAIN), list(CHAIN))
        before = await airflow.count("stream_server.journal")
        for task_id in ("ask", "answer"):
            await airflow.wait_for_trigger(KEY, task_id)
        await airflow.connection.execute("DELETE FROM trigger")
        kinds = await airflow.connection.fetch("SELECT kind FROM stream_server.journal ORDER BY id OFFSET $1", before)
        await airflow.connection.execute("DELETE FROM dag_run WHERE dag_id = $1", KEY.dag_id)
        last = await airflow.connection.fetch(
            "SELECT kind FROM stream_server.journal ORDER BY id OFFSET $1", before + 1
        )
    assert ([row["kind"] for row in kinds], [row["kind"] for row in last]) == (["run_changed"], ["run_deleted"])


async def test_rows_of_a_loop_have_the_iteration(databases: UpgradedDatabases) -> None:
    async with VersionedSql.open(await databases.copy_of(UPCOMING)) as airflow:
        assert isinstance(airflow, TriesSql)
        version = await airflow.add_dag(KEY.dag_id, CHAIN)
        await airflow.trigger(KEY, version, ["clean_up"])
        loop = await airflow.add_region(KEY, "again")
        inner = await airflow.add_region(KEY, "answer", parent=loop, parent_index=2)
        await airflow.add_instance(KEY, version, "ask", 1, loop)
        await airflow.add_instance(KEY, version, "answer", 3, inner)
        await airflow.set_task(KEY, "ask", "scheduled", 1)
        await airflow.push(KEY, "ask", "value", 1)
        await airflow.emit_output(KEY, "answer", 0, "a", map_index=3)
        rows = await airflow.connection.fetch(
            "SELECT kind, task_id, map_index, iteration, state FROM stream_server.journal"
            " WHERE dag_id = $1 AND task_id <> 'clean_up' ORDER BY id",
            KEY.dag_id,
        )
        output = await airflow.connection.fetchrow(
            "SELECT map_index, iteration FROM stream_server.output WHERE dag_id = $1", KEY.dag_id
        )
    assert [tuple(row) for row in rows] == [
        ("task", "ask", -1, 1, None),
        ("task", "answer", 3, 2, None),
        ("task", "ask", -1, 1, "scheduled"),
        ("xcom", "ask", -1, 1, None),
        ("xcom", "answer", 3, 2, None),
    ]
    assert tuple(output or ()) == (3, 2)


async def task_rows(airflow: VersionedSql, task_id: str) -> list[tuple[Any, ...]]:
    """Return try number, state and previous state of each row of a task."""
    rows = await airflow.connection.fetch(
        "SELECT try_number, state, previous_state FROM stream_server.journal"
        " WHERE kind = 'task' AND dag_id = $1 AND task_id = $2 ORDER BY id",
        KEY.dag_id,
        task_id,
    )
    return [tuple(row) for row in rows]
