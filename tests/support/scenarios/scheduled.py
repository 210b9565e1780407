"""Runs that Airflow alone moves: tasks that succeed, fail, retry, wait, expand, and emit output."""

from __future__ import annotations

import asyncio

from support.scenarios.scenario_run import NO_OUTCOME, Expected, ScenarioRun, failure, result
from support.serialized_dags import Node


async def success(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.run_task("ask", {"question": "why"})
    await run.step()
    await run.start_task("answer")
    await run.push("answer", {"text": "because"})
    await run.step()
    await run.set_task("answer", "success")
    await run.finish_chain()
    return result(answer={"text": "because"})


async def failed_task(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.start_task("ask")
    await run.set_task("ask", "failed")
    await run.step()
    await run.set_task("answer", "upstream_failed")
    await run.run_task("clean_up", None)
    await run.set_run("failed")
    return failure("task_failed", "ask", map_index=-1, try_number=1)


async def retry(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.run_task("ask", 1)
    await run.start_task("answer")
    await run.push("answer", "draft")
    await run.step()
    await run.set_task("answer", "up_for_retry")
    await run.step()
    await run.start_task("answer")
    await run.step()
    await run.return_value("answer", "final")
    await run.finish_chain()
    return result(answer="final")


async def value_replaced(run: ScenarioRun) -> Expected:
    """A task pushes a draft as its return value, and later the final value."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.start_task("answer")
    await run.return_value("answer", "draft")
    await run.finish_chain()
    return result(answer="draft")


async def deferred(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.run_task("ask", 1)
    await run.start_task("answer")
    await run.set_task("answer", "deferred")
    await run.step()
    for state in ("scheduled", "queued", "running"):
        await run.set_task("answer", state)
    await run.return_value("answer", 42)
    await run.finish_chain()
    return result(answer=42)


async def rescheduled(run: ScenarioRun) -> Expected:
    await run.start_run()
    for _ in range(2):
        for state in ("scheduled", "queued", "running", "up_for_reschedule"):
            await run.set_task("ask", state)
        await run.step()
    for state in ("scheduled", "queued", "running", "success"):
        await run.set_task("ask", state)
    await run.run_task("answer", [])
    await run.finish_chain()
    return result(answer=[])


async def sql_null(run: ScenarioRun) -> Expected:
    """A value is SQL NULL, as an upgrade from Airflow 2 leaves it."""
    await run.start_run()
    await run.run_task("ask", None)
    await run.run_task("answer", None)
    await run.finish_chain()
    return result(answer=None)


async def mapped_task(run: ScenarioRun) -> Expected:
    await run.start_run({"list": Node("square"), "square": Node(mapped_over="list")})
    await run.run_task("list", [1, 2, 3])
    await run.airflow.expand(run.key, run.version, "square", 3)
    await run.step()
    for map_index in (2, 0, 1):
        await run.run_task("square", map_index**2, map_index)
        await run.step()
    await run.set_run("success")
    return result(square=[0, 1, 4])


async def mapped_over_nothing(run: ScenarioRun) -> Expected:
    await run.start_run({"list": Node("square"), "square": Node(mapped_over="list")})
    await run.run_task("list", [])
    await run.step()
    await run.airflow.connection.execute(
        "UPDATE task_instance SET state = 'skipped' WHERE dag_id = $1 AND run_id = $2 AND task_id = 'square'",
        *run.key,
    )
    await run.set_run("success")
    return result(square=[])


async def many_mapped_instances(run: ScenarioRun) -> Expected:
    """More instances than a snapshot lists, moved in bulk as the scheduler does."""
    await run.start_run({"list": Node("square"), "square": Node(mapped_over="list")})
    await run.run_task("list", 120)
    await run.airflow.expand(run.key, run.version, "square", 120)
    await run.step()
    for state in ("scheduled", "queued", "running"):
        await run.airflow.connection.execute(
            "UPDATE task_instance SET state = $3::text, updated_at = clock_timestamp(),"
            " try_number = CASE WHEN $3::text = 'scheduled' THEN 1 ELSE try_number END"
            " WHERE dag_id = $1 AND run_id = $2 AND task_id = 'square'",
            *run.key,
            state,
        )
    await run.step()
    async with run.airflow.connection.transaction():
        for map_index in range(120):
            await run.push("square", map_index, map_index)
            await run.set_task("square", "success", map_index)
    await run.set_run("success")
    return result(square=list(range(120)))


async def output_of_tasks(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.start_task("ask")
    await run.emit("ask", 0, "thinking")
    await run.emit("ask", 1, {"progress": {"fraction": 0.5, "text": "half"}})
    await run.return_value("ask", 1)
    await run.step()
    await run.start_task("answer")
    for index, word in enumerate(("be", "cau", "se")):
        await run.emit("answer", index, word)
        await run.step()
    await run.return_value("answer", "because")
    await run.finish_chain()
    return result(answer="because")


async def output_retracted_by_retry(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.start_task("ask")
    await run.emit("ask", 0, "kept")
    await run.return_value("ask", 1)
    await run.start_task("answer")
    await run.emit("answer", 0, "wrong")
    await run.step()
    await run.set_task("answer", "up_for_retry")
    # The Execution API accepts what a killed try still sends.
    await run.emit("answer", 1, "late")
    await run.step()
    await run.start_task("answer")
    await run.emit("answer", 0, "right", try_number=2)
    await run.return_value("answer", "right")
    await run.finish_chain()
    return result(answer="right")


async def two_marked_tasks(run: ScenarioRun) -> Expected:
    tasks = {"start": Node("left", "right"), "left": Node(), "right": Node()}
    await run.start_run(tasks, tags=["stream-result:left", "stream-result:right"])
    await run.run_task("start", None)
    await run.run_task("right", [2])
    await run.step()
    await run.run_task("left", 1)
    await run.step()
    await run.set_run("success")
    return result(left=1, right=[2])


async def native_marks(run: ScenarioRun) -> Expected:
    """Tasks with Airflow 3.3's own mark, which shows when they push."""
    await run.start_run({"left": Node(), "right": Node(), "log": Node()})
    for task_id, value in (("left", 1), ("log", "x"), ("right", 2)):
        await run.start_task(task_id)
        await run.push(task_id, value, dag_result=task_id != "log")
        await run.set_task(task_id, "success")
        await run.step()
    await run.set_run("success")
    return result(left=1, right=2)


async def no_result_task(run: ScenarioRun) -> Expected:
    await run.start_run({"left": Node(), "right": Node()})
    await run.run_task("left", 1)
    await run.run_task("right", 2)
    await run.set_run("success")
    return NO_OUTCOME


async def overlapping_transactions(run: ScenarioRun) -> Expected:
    """A transaction that began first commits last."""
    await run.start_run({"left": Node("join"), "right": Node("join"), "join": Node()})
    async with run.airflow.connection.transaction():
        await run.set_task("left", "scheduled")
        for state in ("scheduled", "queued", "running"):
            await run.other.set_task(run.key, "right", state)
            await asyncio.sleep(0)
        await run.other.push(run.key, "right", 1)
        await run.other.set_task(run.key, "right", "success")
    await run.step()
    for state in ("queued", "running", "success"):
        await run.set_task("left", state)
    await run.run_task("join", "both")
    await run.set_run("success")
    return result(join="both")


async def removed_task(run: ScenarioRun) -> Expected:
    """A task is no longer in the DAG (`DagRun.verify_integrity`)."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.set_task("clean_up", "removed")
    await run.step()
    await run.run_task("answer", 2)
    await run.set_run("success")
    return result(answer=2)


async def large_value(run: ScenarioRun) -> Expected:
    """A value that is too large to be sent is named by a reference."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "x" * 1_100_000)
    await run.finish_chain()
    return Expected("result", {"results": {}})
