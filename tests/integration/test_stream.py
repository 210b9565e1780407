"""Streams of one run, from the commit in PostgreSQL to the frame on the socket."""

from __future__ import annotations

import json
from collections.abc import Callable

from stream_server.domain.run_state import RunKey
from stream_server.protocol.cursor import ResumeToken
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.server import RunningServer, running_server
from support.streams import Frame, frames_of, sse, states, types, websocket
from support.waiting import eventually_async


async def test_a_stream_has_all_transitions_up_to_the_result(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        snapshot = await events.next()
        await airflow.complete_chain(run)
        frames = await events.rest()

    assert snapshot["type"] == "snapshot"
    assert snapshot["run"]["state"] == "queued"
    assert snapshot["result_tasks"] == ["answer"]
    assert [task["task_id"] for task in snapshot["tasks"]] == sorted(CHAIN)
    assert states(frames, "ask") == ["scheduled", "queued", "running", "success"]
    result, end = frames[-2:]
    assert result["results"] == {"answer": {"text": "because"}}
    assert (end["type"], end["state"], end["outcome"]) == ("end", "running", "result")


async def test_frames_are_the_committed_transitions_in_order(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with websocket(server.url, run, "?until=run") as connection:
        snapshot = json.loads(await connection.recv())
        await airflow.complete_chain(run)
        async with airflow.connection.transaction():
            await airflow.set_task(run, "clean_up", "success")
            await airflow.set_run(run, "success")
        frames = await frames_of(connection)

    snapshot_seen = ResumeToken.parse(snapshot["cursor"]).position.snapshot
    committed = await airflow.connection.fetch(
        "SELECT id, kind, task_id, state FROM stream_server.journal"
        " WHERE kind IN ('task', 'run') AND NOT pg_visible_in_snapshot(txid, $1::text::pg_snapshot) ORDER BY id",
        snapshot_seen,
    )
    sent = [
        (frame["seq"], frame["type"], frame.get("task_id"), frame["state"])
        for frame in frames
        if frame["type"] in ("task", "run")
    ]
    assert sent == [tuple(row) for row in committed]
    assert types(frames)[-1] == "end"


async def test_rolled_back_transitions_are_never_sent(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.set_task(run, "ask", "failed")
        await transaction.rollback()
        await airflow.set_task(run, "ask", "scheduled")
        frame = await events.next()

    assert (frame["task_id"], frame["state"]) == ("ask", "scheduled")


async def test_rows_of_a_late_commit_are_sent_although_their_ids_are_lower(
    airflow: AirflowSql, journal: str, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events, AirflowSql.open(journal) as slow:
        await events.next()
        transaction = slow.connection.transaction()
        await transaction.start()
        await slow.set_task(run, "ask", "scheduled")
        await airflow.set_task(run, "answer", "scheduled")
        first = await events.next()
        await transaction.commit()
        second = await events.next()

    assert [first["task_id"], second["task_id"]] == ["answer", "ask"]
    assert second["seq"] < first["seq"]


async def test_a_failure_of_the_result_task_is_sent_at_once(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await airflow.set_run(run, "running")
        await airflow.start_task(run, "answer")
        await airflow.set_task(run, "answer", "failed")
        frames = await events.rest()

    failure, end = frames[-2:]
    assert failure["type"] == "failure"
    assert (failure["reason"], failure["task_id"], failure["try_number"]) == ("task_failed", "answer", 1)
    assert (end["state"], end["outcome"]) == ("running", "failure")


async def test_a_retry_is_not_a_failure(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await airflow.start_task(run, "answer")
        await airflow.set_task(run, "answer", "up_for_retry")
        await airflow.run_task(run, "answer", 42)
        frames = await events.rest()

    assert states(frames, "answer") == [
        *("scheduled", "queued", "running", "up_for_retry"),
        *("scheduled", "queued", "running"),
        *(["success"] if "success" in states(frames, "answer") else []),
    ]
    assert frames[-2]["results"] == {"answer": 42}
    assert "failure" not in types(frames)


async def test_a_task_without_a_return_value_has_the_result_null(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await airflow.start_task(run, "answer")
        await airflow.set_task(run, "answer", "success")
        frames = await events.rest()

    assert frames[-2]["results"] == {"answer": None}


async def test_the_caller_chooses_the_result_task(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run, "?result=ask") as events:
        snapshot = await events.next()
        await airflow.run_task(run, "ask", [1, "two", None])
        frames = await events.rest()

    assert snapshot["result_tasks"] == ["ask"]
    assert frames[-2]["results"] == {"ask": [1, "two", None]}


async def test_several_result_tasks_are_sent_in_one_frame(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run, "?result=answer&result=ask") as events:
        await airflow.run_task(run, "ask", 1)
        await airflow.run_task(run, "answer", 2)
        frames = await events.rest()

    assert frames[-2]["results"] == {"answer": 2, "ask": 1}
    assert types(frames).count("result") == 1


async def test_airflows_result_mark_takes_precedence_over_the_leaf(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    async with sse(server.url, run) as events:
        await airflow.start_task(run, "ask")
        await airflow.push(run, "ask", "marked", dag_result=True)
        await airflow.set_task(run, "ask", "success")
        await airflow.run_task(run, "answer", "not marked")
        await airflow.set_run(run, "success")
        frames = await events.rest()

    assert frames[-2]["results"] == {"ask": "marked"}
    assert types(frames).count("result") == 1


async def test_a_mapped_result_is_a_list_by_map_index(airflow: AirflowSql, server: RunningServer) -> None:
    version = await airflow.add_dag("squares", {"numbers": ["square"], "square": []})
    run = RunKey("squares", "r1")
    await airflow.trigger(run, version, ["numbers", "square"])
    async with sse(server.url, run) as events:
        await events.next()
        await airflow.run_task(run, "numbers", [1, 2, 3])
        await airflow.expand(run, version, "square", 3)
        for map_index in (2, 0, 1):
            await airflow.run_task(run, "square", (map_index + 1) ** 2, map_index)
        frames = await events.rest()

    created = [frame["map_index"] for frame in frames if frame["type"] == "task" and frame.get("task_id") == "square"][
        :3
    ]
    assert created == [0, 1, 2]
    assert frames[-2]["results"] == {"square": [1, 4, 9]}


async def test_a_value_that_was_pushed_before_a_deferral_is_the_result_when_the_task_runs_again(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    await airflow.start_task(run, "answer")
    await airflow.push(run, "answer", "early")
    await airflow.set_task(run, "answer", "deferred")
    async with sse(server.url, run, "?until=run") as events:
        assert (await events.next())["type"] == "snapshot"
        for state in ("scheduled", "queued", "running"):
            await airflow.set_task(run, "answer", state)
        frames = [await events.next() for _ in range(4)]
    assert types(frames) == ["task", "task", "task", "result"]
    assert frames[-1]["results"] == {"answer": "early"}


async def test_a_value_of_an_earlier_try_is_not_the_result_of_a_try_that_waits_to_run(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    await airflow.start_task(run, "answer")
    await airflow.push(run, "answer", "first try")
    for state in ("up_for_retry", "scheduled", "queued"):
        await airflow.set_task(run, "answer", state)
    async with sse(server.url, run, "?until=run") as events:
        assert (await events.next())["type"] == "snapshot"
        await airflow.set_task(run, "answer", "running")
        await airflow.push(run, "answer", "second try")
        frames = [await events.next() for _ in range(2)]
    assert types(frames) == ["task", "result"]
    assert frames[-1]["results"] == {"answer": "second try"}


async def test_a_push_of_a_killed_task_is_not_a_result(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await airflow.start_task(run, "answer")
        await airflow.set_task(run, "answer", "up_for_retry")
        await airflow.push(run, "answer", "too late")
        await airflow.run_task(run, "answer", "in time")
        frames = await events.rest()

    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": "in time"}]


async def test_a_value_too_large_is_sent_as_a_reference(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    async with running_server(settings(max_result_bytes=100)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events:
            await airflow.run_task(run, "answer", "x" * 200)
            frames = await events.rest()

    assert frames[-2]["results"] == {}
    reference = frames[-2]["references"]["answer"]
    assert reference["bytes"] == 202
    assert reference["href"].endswith("/taskInstances/answer/xcomEntries/return_value")


async def test_a_finished_run_sends_its_result_at_once(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    await airflow.complete_chain(run)
    await airflow.set_task(run, "clean_up", "success")
    await airflow.set_run(run, "success")

    async with sse(server.url, run) as events:
        frames = await events.rest()
    async with websocket(server.url, run) as connection:
        assert types(await frames_of(connection)) == ["snapshot", "result", "end"]
        assert connection.close_code == 1000

    assert types(frames) == ["snapshot", "result", "end"]
    assert frames[1]["results"] == {"answer": {"text": "because"}}
    assert (frames[2]["state"], frames[2]["outcome"]) == ("success", "result")


async def test_late_subscribers_share_the_known_state(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run, "?until=run") as early:
        await early.next()
        await airflow.complete_chain(run)
        received: list[Frame] = []
        # The last transition and the result may come in either order.
        while "running" not in states(received, "clean_up") or "result" not in types(received):
            received.append(await early.next())
        async with sse(server.url, run, "?until=run") as late:
            snapshot, result = await late.next(), await late.next()
            assert server.hub.statistics().runs == 1
            await airflow.set_task(run, "clean_up", "success")
            frames = [await early.next(), await late.next()]
            while frames[0] != frames[1]:
                frames[0] = await early.next()

    assert {task["task_id"]: task["state"] for task in snapshot["tasks"]} == {
        "ask": "success",
        "answer": "success",
        "clean_up": "running",
    }
    assert result["results"] == {"answer": {"text": "because"}}


async def test_clearing_a_task_retracts_the_result(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    await airflow.complete_chain(run)
    async with sse(server.url, run, "?until=run") as events:
        await events.until("result")
        await airflow.clear(run, ["answer"])
        retracted = await events.until("reset")
        snapshot = await events.next()
        await airflow.run_task(run, "answer", "new")
        again = await events.until("result")

    assert retracted[-1]["reason"] == "cleared"
    assert snapshot["run"]["clear_number"] == 1
    assert next(task["state"] for task in snapshot["tasks"] if task["task_id"] == "answer") is None
    assert again[-1]["results"] == {"answer": "new"}


async def test_an_old_xcom_of_a_cleared_task_is_not_a_result(
    airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    await airflow.complete_chain(run)
    await airflow.clear(run, ["answer"])
    await airflow.start_task(run, "answer")
    async with sse(server.url, run) as events:
        snapshot = await events.next()
        await airflow.push(run, "answer", "new")
        frames = await events.rest()

    assert snapshot["type"] == "snapshot"
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": "new"}]


async def test_a_deleted_run_ends_its_streams(airflow: AirflowSql, server: RunningServer, run: RunKey) -> None:
    async with sse(server.url, run) as events:
        await events.next()
        await airflow.delete_run(run)
        failure, end = await events.rest()

    assert failure["reason"] == "run_deleted"
    assert (end["state"], end["outcome"]) == (None, "failure")
