"""Runs that Airflow alone moves: tasks that succeed, fail, retry, wait, expand, and emit output."""

from __future__ import annotations

import asyncio

from support.scenarios.play import NO_OUTCOME, Expected, Play, failure, result
from support.serialized_dags import Node


async def success(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", {"question": "why"})
    await play.step()
    await play.start("answer")
    await play.push("answer", {"text": "because"})
    await play.step()
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer={"text": "because"})


async def failed_task(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.set("ask", "failed")
    await play.step()
    await play.set("answer", "upstream_failed")
    await play.run("clean_up", None)
    await play.set_run("failed")
    return failure("task_failed", "ask", map_index=-1, try_number=1)


async def retry(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.start("answer")
    await play.push("answer", "draft")
    await play.step()
    await play.set("answer", "up_for_retry")
    await play.step()
    await play.start("answer")
    await play.step()
    await play.push("answer", "final")
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer="final")


async def value_replaced(play: Play) -> Expected:
    """A task pushes a draft as its return value, and later the final value."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.start("answer")
    await play.push("answer", "draft")
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer="draft")


async def deferred(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.start("answer")
    await play.set("answer", "deferred")
    await play.step()
    for state in ("scheduled", "queued", "running"):
        await play.set("answer", state)
    await play.push("answer", 42)
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer=42)


async def rescheduled(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    for _ in range(2):
        for state in ("scheduled", "queued", "running", "up_for_reschedule"):
            await play.set("ask", state)
        await play.step()
    for state in ("scheduled", "queued", "running", "success"):
        await play.set("ask", state)
    await play.run("answer", [])
    await play.finish_chain()
    return result(answer=[])


async def sql_null(play: Play) -> Expected:
    """A value is SQL NULL, as an upgrade from Airflow 2 leaves it."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", None)
    await play.run("answer", None)
    await play.finish_chain()
    return result(answer=None)


async def human_input(play: Play) -> Expected:
    """A human-in-the-loop operator waits for an answer (Airflow 3.3's `awaiting_input`)."""
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.airflow.request_input(play.key, "ask")
    await play.set("ask", "awaiting_input")
    await play.step()
    for state in ("scheduled", "queued", "running"):
        await play.set("ask", state)
    await play.push("ask", {"chosen_options": ["Approve"]})
    await play.set("ask", "success")
    await play.run("answer", "yes")
    await play.finish_chain()
    return result(answer="yes")


async def mapped_task(play: Play) -> Expected:
    await play.trigger({"list": Node("square"), "square": Node(mapped_over="list")})
    await play.set_run("running")
    await play.run("list", [1, 2, 3])
    await play.airflow.expand(play.key, play.version, "square", 3)
    await play.step()
    for map_index in (2, 0, 1):
        await play.run("square", map_index**2, map_index)
        await play.step()
    await play.set_run("success")
    return result(square=[0, 1, 4])


async def mapped_over_nothing(play: Play) -> Expected:
    await play.trigger({"list": Node("square"), "square": Node(mapped_over="list")})
    await play.set_run("running")
    await play.run("list", [])
    await play.step()
    await play.airflow.connection.execute(
        "UPDATE task_instance SET state = 'skipped' WHERE dag_id = $1 AND run_id = $2 AND task_id = 'square'",
        *play.key,
    )
    await play.set_run("success")
    return result(square=[])


async def many_mapped_instances(play: Play) -> Expected:
    """More instances than a snapshot lists, moved in bulk as the scheduler does."""
    await play.trigger({"list": Node("square"), "square": Node(mapped_over="list")})
    await play.set_run("running")
    await play.run("list", 120)
    await play.airflow.expand(play.key, play.version, "square", 120)
    await play.step()
    for state in ("scheduled", "queued", "running"):
        await play.airflow.connection.execute(
            "UPDATE task_instance SET state = $3::text, updated_at = clock_timestamp(),"
            " try_number = CASE WHEN $3::text = 'scheduled' THEN 1 ELSE try_number END"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = 'square'",
            *play.key,
            state,
        )
    await play.step()
    async with play.airflow.connection.transaction():
        for map_index in range(120):
            await play.push("square", map_index, map_index)
            await play.set("square", "success", map_index)
    await play.set_run("success")
    return result(square=list(range(120)))


async def output_of_tasks(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.emit("ask", 0, "thinking")
    await play.emit("ask", 1, {"progress": {"fraction": 0.5, "text": "half"}})
    await play.push("ask", 1)
    await play.set("ask", "success")
    await play.step()
    await play.start("answer")
    for index, word in enumerate(("be", "cau", "se")):
        await play.emit("answer", index, word)
        await play.step()
    await play.push("answer", "because")
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer="because")


async def output_retracted_by_retry(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.emit("ask", 0, "kept")
    await play.push("ask", 1)
    await play.set("ask", "success")
    await play.start("answer")
    await play.emit("answer", 0, "wrong")
    await play.step()
    await play.set("answer", "up_for_retry")
    # The Execution API accepts what a killed try still sends.
    await play.emit("answer", 1, "late")
    await play.step()
    await play.start("answer")
    await play.emit("answer", 0, "right", try_number=2)
    await play.push("answer", "right")
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer="right")


async def two_marked_tasks(play: Play) -> Expected:
    tasks = {"start": Node("left", "right"), "left": Node(), "right": Node()}
    await play.trigger(tasks, tags=["stream-result:left", "stream-result:right"])
    await play.set_run("running")
    await play.run("start", None)
    await play.run("right", [2])
    await play.step()
    await play.run("left", 1)
    await play.step()
    await play.set_run("success")
    return result(left=1, right=[2])


async def native_marks(play: Play) -> Expected:
    """Tasks with Airflow 3.3's own mark, which shows when they push."""
    await play.trigger({"left": Node(), "right": Node(), "log": Node()})
    await play.set_run("running")
    for task_id, value in (("left", 1), ("log", "x"), ("right", 2)):
        await play.start(task_id)
        await play.push(task_id, value, dag_result=task_id != "log")
        await play.set(task_id, "success")
        await play.step()
    await play.set_run("success")
    return result(left=1, right=2)


async def no_result_task(play: Play) -> Expected:
    await play.trigger({"left": Node(), "right": Node()})
    await play.set_run("running")
    await play.run("left", 1)
    await play.run("right", 2)
    await play.set_run("success")
    return NO_OUTCOME


async def overlapping_transactions(play: Play) -> Expected:
    """A transaction that began first commits last."""
    await play.trigger({"left": Node("join"), "right": Node("join"), "join": Node()})
    await play.set_run("running")
    async with play.airflow.connection.transaction():
        await play.set("left", "scheduled")
        for state in ("scheduled", "queued", "running"):
            await play.other.set_task(play.key, "right", state)
            await asyncio.sleep(0)
        await play.other.push(play.key, "right", 1)
        await play.other.set_task(play.key, "right", "success")
    await play.step()
    for state in ("queued", "running", "success"):
        await play.set("left", state)
    await play.run("join", "both")
    await play.set_run("success")
    return result(join="both")


async def removed_task(play: Play) -> Expected:
    """A task is no longer in the DAG (`DagRun.verify_integrity`)."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.set("clean_up", "removed")
    await play.step()
    await play.run("answer", 2)
    await play.set_run("success")
    return result(answer=2)


async def large_value(play: Play) -> Expected:
    """A value that is too large to be sent is named by a reference."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "x" * 1_100_000)
    await play.finish_chain()
    return Expected("result", {"results": {}})
