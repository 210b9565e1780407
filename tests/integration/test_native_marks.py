"""Airflow 3.3's own result marks, read from a run and from earlier runs of the version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.streams import Frame, sse, stream_path, types
from support.waiting import eventually_async

LEAVES: dict[str, list[str]] = {"left": [], "right": [], "log": []}


async def add_version(airflow: AirflowSql) -> UUID:
    return await airflow.add_dag("marked", LEAVES)


async def start_run(airflow: AirflowSql, run_id: str, version: UUID) -> RunKey:
    key = RunKey("marked", run_id)
    await airflow.trigger(key, version, list(LEAVES))
    await airflow.set_run(key, "running")
    return key


async def push(airflow: AirflowSql, key: RunKey, task_id: str, value: object) -> None:
    """Start a task and push its value as Airflow 3.3 does: with a mark for `left` and `right`."""
    await airflow.start_task(key, task_id)
    await airflow.push(key, task_id, value, dag_result=task_id != "log")


async def finish_run(airflow: AirflowSql, key: RunKey, state: str = "success") -> None:
    for task_id in LEAVES:
        await push(airflow, key, task_id, task_id)
        await airflow.set_task(key, task_id, "success")
    await airflow.set_run(key, state)


async def first_frame(server: RunningServer, key: RunKey) -> Frame:
    async with sse(server.url, key, "?until=run") as events:
        return await events.next()


async def result_body(server: RunningServer, key: RunKey, query: str = "?timeout=0") -> Any:
    async with httpx.AsyncClient(base_url=server.url, timeout=15) as client:
        response = await client.get(f"{stream_path(key).removesuffix('stream')}result{query}")
    return response.json()


@pytest.mark.parametrize("until", ["result", "run"])
async def test_the_first_run_of_a_version_has_its_result_at_its_end(
    server: RunningServer, airflow: AirflowSql, until: str
) -> None:
    key = await start_run(airflow, "first", await add_version(airflow))
    async with sse(server.url, key, f"?until={until}") as events:
        assert (await events.next())["result_tasks"] == []
        await push(airflow, key, "left", 1)
        await push(airflow, key, "right", 2)
        for task_id in ("left", "right"):
            await airflow.set_task(key, task_id, "success")
        assert (await result_body(server, key))["outcome"] == "pending"
        await airflow.set_run(key, "success")
        frames = await events.rest()
    assert types(frames)[-3:] == ["run", "result", "end"]
    assert types(frames).count("result") == 1
    assert "reset" not in types(frames)
    assert frames[-2]["results"] == {"left": 1, "right": 2}
    assert frames[-2]["seq"] == frames[-3]["seq"], "the end of the run completes it"
    assert (await result_body(server, key))["results"] == {"left": 1, "right": 2}


@pytest.mark.parametrize("until", ["result", "run"])
async def test_the_second_run_has_its_result_with_the_last_value(
    server: RunningServer, airflow: AirflowSql, until: str
) -> None:
    version = await add_version(airflow)
    await finish_run(airflow, await start_run(airflow, "first", version))

    key = await start_run(airflow, "second", version)
    async with sse(server.url, key, f"?until={until}") as events:
        assert (await events.next())["result_tasks"] == ["left", "right"]
        await push(airflow, key, "left", 1)
        assert (await result_body(server, key))["outcome"] == "pending"
        await push(airflow, key, "right", 2)
        frames = await events.until("result")
        assert frames[-1]["results"] == {"left": 1, "right": 2}
        assert (await result_body(server, key))["results"] == {"left": 1, "right": 2}
        await airflow.set_run(key, "success")
        rest = await events.rest()
    assert types(rest) == (["end"] if until == "result" else ["run", "end"])
    assert rest[-1]["outcome"] == "result"


async def test_an_unfinished_run_does_not_count_as_an_earlier_run(server: RunningServer, airflow: AirflowSql) -> None:
    """Marks read during a run are not cached for its version."""
    version = await add_version(airflow)
    first = await start_run(airflow, "first", version)
    await push(airflow, first, "left", 1)
    second = await start_run(airflow, "second", version)
    assert (await first_frame(server, second))["result_tasks"] == []
    await finish_run(airflow, first)
    assert (await first_frame(server, second))["result_tasks"] == ["left", "right"]
    await airflow.clear(first, ["left"])
    assert (await first_frame(server, second))["result_tasks"] == []


async def test_a_marked_task_that_has_not_run_before_is_waited_for(server: RunningServer, airflow: AirflowSql) -> None:
    version = await add_version(airflow)
    first = await start_run(airflow, "first", version)
    for task_id in ("left", "log"):
        await push(airflow, first, task_id, 1)
        await airflow.set_task(first, task_id, "success")
    await airflow.set_task(first, "right", "failed")
    await airflow.set_run(first, "failed")

    key = await start_run(airflow, "second", version)
    async with sse(server.url, key) as events:
        assert (await events.next())["result_tasks"] == ["left"]
        await push(airflow, key, "left", 1)
        assert (await result_body(server, key))["outcome"] == "pending"
        await push(airflow, key, "right", 2)
        frames = await events.rest()
    assert frames[-2]["results"] == {"left": 1, "right": 2}


async def test_the_marks_of_several_earlier_runs_are_combined(server: RunningServer, airflow: AirflowSql) -> None:
    version = await add_version(airflow)
    for run_id, taken, skipped in (("first", "left", "right"), ("second", "right", "left")):
        key = await start_run(airflow, run_id, version)
        await airflow.set_task(key, skipped, "skipped")
        await push(airflow, key, taken, 1)
        await airflow.set_task(key, taken, "success")
        await airflow.set_run(key, "success")
    third = await start_run(airflow, "third", version)
    assert (await first_frame(server, third))["result_tasks"] == ["left", "right"]


async def test_a_success_without_a_value_does_not_hide_a_mark(server: RunningServer, airflow: AirflowSql) -> None:
    version = await add_version(airflow)
    await finish_run(airflow, await start_run(airflow, "first", version))
    second = await start_run(airflow, "second", version)
    await push(airflow, second, "left", 1)
    await airflow.set_task(second, "right", "success")
    await airflow.set_run(second, "success")
    third = await start_run(airflow, "third", version)
    assert (await first_frame(server, third))["result_tasks"] == ["left", "right"]


async def test_the_newest_value_shows_where_the_author_has_moved_the_mark(
    server: RunningServer, airflow: AirflowSql
) -> None:
    version = await add_version(airflow)
    await finish_run(airflow, await start_run(airflow, "first", version))
    second = await start_run(airflow, "second", version)
    for task_id in LEAVES:
        await airflow.start_task(second, task_id)
        await airflow.push(second, task_id, 1, dag_result=task_id == "log")
    await airflow.set_run(second, "success")
    third = await start_run(airflow, "third", version)
    assert (await first_frame(server, third))["result_tasks"] == ["log"]


async def test_every_server_sends_the_same_result(
    settings: Callable[..., Settings], server: RunningServer, airflow: AirflowSql
) -> None:
    """One server watches since before the earlier run ended, the other joins after it."""
    version = await add_version(airflow)
    first, second = [await start_run(airflow, run_id, version) for run_id in ("first", "second")]
    async with running_server(settings()) as other, sse(server.url, second) as watching:
        await eventually_async(lambda: other.hub.is_live)
        assert (await watching.next())["result_tasks"] == []
        await finish_run(airflow, first)
        async with sse(other.url, second) as joined:
            assert (await joined.next())["result_tasks"] == ["left", "right"]
            await push(airflow, second, "left", 1)
            await push(airflow, second, "right", 2)
            early = await joined.rest()
        await airflow.set_run(second, "success")
        late = await watching.rest()
    for frames in (early, late):
        assert types(frames).count("result") == 1
        assert frames[-2]["results"] == {"left": 1, "right": 2}


async def test_a_client_that_resumes_gets_the_whole_result_once(server: RunningServer, airflow: AirflowSql) -> None:
    key = await start_run(airflow, "first", await add_version(airflow))
    async with sse(server.url, key) as events:
        await events.next()
        await push(airflow, key, "left", 1)
        await events.until("task")
        # Only the last frame of a batch has a cursor.
        while (cursor := events.ids[-1]) is None:
            await events.next()
    await push(airflow, key, "right", 2)
    for task_id in ("left", "right"):
        await airflow.set_task(key, task_id, "success")
    await airflow.set_run(key, "success")
    async with sse(server.url, key, headers={"Last-Event-ID": cursor}) as events:
        frames = await events.rest()
    assert types(frames)[0] == "resumed"
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"left": 1, "right": 2}]


async def test_a_failed_first_run_has_no_result(server: RunningServer, airflow: AirflowSql) -> None:
    key = await start_run(airflow, "first", await add_version(airflow))
    await push(airflow, key, "left", 1)
    await airflow.set_task(key, "left", "success")
    await airflow.set_run(key, "failed")
    body = await result_body(server, key)
    assert (body["outcome"], body["failure"]["reason"]) == ("failure", "run_failed")


async def test_serialised_marks_give_an_early_result_in_the_first_run(
    server: RunningServer, airflow: AirflowSql
) -> None:
    """Those of `stream_server.authoring` come with the native mark, on Airflow 3.3."""
    version = await add_version(airflow)
    await airflow.connection.execute(
        "UPDATE serialized_dag SET data = jsonb_set(data, '{dag,tags}', '[\"stream-result:left\"]')"
    )
    key = await start_run(airflow, "first", version)
    async with sse(server.url, key) as events:
        assert (await events.next())["result_tasks"] == ["left"]
        await push(airflow, key, "left", 1)
        frames = await events.rest()
    assert frames[-2]["results"] == {"left": 1}


async def test_marks_of_another_version_are_ignored(server: RunningServer, airflow: AirflowSql) -> None:
    await finish_run(airflow, await start_run(airflow, "first", await add_version(airflow)))
    second = await start_run(airflow, "second", await add_version(airflow))
    assert (await first_frame(server, second))["result_tasks"] == []


async def test_values_of_an_older_airflow_have_no_marks(server: RunningServer, airflow: AirflowSql) -> None:
    version = await add_version(airflow)
    await finish_run(airflow, await start_run(airflow, "first", version))
    await airflow.connection.execute("UPDATE xcom SET dag_result = NULL")
    key = await start_run(airflow, "second", version)
    await push(airflow, key, "left", 1)
    assert (await result_body(server, key))["outcome"] == "pending"
    await push(airflow, key, "right", 2)
    await airflow.set_run(key, "success")
    assert (await result_body(server, key))["results"] == {"left": 1, "right": 2}


@pytest.mark.parametrize("without", ["dag_result"])
async def test_an_airflow_without_native_marks_is_still_read(
    server: RunningServer, airflow: AirflowSql, without: str
) -> None:
    version = await add_version(airflow)
    await finish_run(airflow, await start_run(airflow, "first", version))
    await airflow.connection.execute(f"ALTER TABLE xcom DROP COLUMN {without}")
    second = await start_run(airflow, "second", version)
    assert (await first_frame(server, second))["result_tasks"] == []
