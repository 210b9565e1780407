"""Runs whose tasks ask for human input."""

from __future__ import annotations

from typing import Any

from support.scenarios.scenario_run import Expected, ScenarioRun, result
from support.serialized_dags import Node

REASON = {"value": None, "description": "Why?", "schema": {"type": ["string", "null"]}}


async def human_input(run: ScenarioRun) -> Expected:
    """A human-in-the-loop operator waits for an answer (Airflow 3.3's `awaiting_input`)."""
    await _ask(run)
    await run.airflow.answer_input(run.key, "ask", "Approve", reason="fine")
    await run.step()
    await _go_on(run)
    return result(answer="yes")


async def human_input_of_a_deferred_task(run: ScenarioRun) -> Expected:
    """Before Airflow 3.3, the task waits as a deferred one, and its trigger resumes it."""
    await _ask(run, state="deferred")
    await run.airflow.answer_input(run.key, "ask", "Reject")
    await run.step()
    await _go_on(run)
    return result(answer="yes")


async def human_input_expires(run: ScenarioRun) -> Expected:
    """There is no answer in time: the scheduler chooses the defaults, without a user."""
    await _ask(run, defaults=["Reject"])
    await run.airflow.answer_input(run.key, "ask", "Reject", by=None)
    await run.step()
    await _go_on(run)
    return result(answer="yes")


async def human_input_is_cleared(run: ScenarioRun) -> Expected:
    """The task is cleared while it waits. Up to Airflow 3.3 its next try takes over the row of the request."""
    await _ask(run)
    await run.airflow.archive_try(run.key, "ask")
    await run.set_task("ask", "restarting")
    await run.step()
    await run.set_task("ask", None)
    await run.start_task("ask")
    await run.set_task("ask", "awaiting_input")
    await run.step()
    await run.airflow.answer_input(run.key, "ask", "Approve")
    await run.step()
    await _go_on(run)
    return result(answer="yes")


async def human_input_is_retried(run: ScenarioRun) -> Expected:
    """The task fails after the answer. Its next try asks again, which removes the answer (`upsert_hitl_detail`)."""
    await _ask(run)
    await run.airflow.answer_input(run.key, "ask", "Approve")
    for state in ("queued", "running", "up_for_retry"):
        await run.set_task("ask", state)
    await run.step()
    await run.start_task("ask")
    await run.airflow.connection.execute(
        "UPDATE hitl_detail SET responded_at = NULL, responded_by = NULL, chosen_options = NULL, params_input = '{}'"
        " FROM task_instance AS t WHERE t.id = ti_id AND dag_id = $1 AND run_id = $2",
        *run.key,
    )
    await run.set_task("ask", "awaiting_input")
    await run.step()
    await run.airflow.answer_input(run.key, "ask", "Reject")
    await run.step()
    await _go_on(run)
    return result(answer="yes")


async def human_input_is_not_needed(run: ScenarioRun) -> Expected:
    """A user marks the waiting task as a success."""
    await _ask(run)
    await run.set_task("ask", "success")
    await run.step()
    await run.run_task("answer", "yes")
    await run.finish_chain()
    return result(answer="yes")


async def human_input_of_a_mapped_task(run: ScenarioRun) -> Expected:
    await run.start_run({"list": Node("square"), "square": Node(mapped_over="list")})
    await run.run_task("list", [1, 2])
    await run.airflow.expand(run.key, run.version, "square", 2)
    for map_index in (0, 1):
        await run.start_task("square", map_index)
        await run.airflow.request_input(run.key, "square", map_index, subject=f"Square {map_index}?")
        await run.set_task("square", "awaiting_input", map_index)
    await run.step()
    for map_index in (1, 0):
        await run.airflow.answer_input(run.key, "square", "Approve", map_index=map_index)
        await run.step()
        await run.set_task("square", "running", map_index)
        await run.return_value("square", map_index, map_index)
    await run.set_run("success")
    return result(square=[0, 1])


async def _ask(run: ScenarioRun, *, state: str = "awaiting_input", **fields: Any) -> None:
    await run.start_run()
    await run.start_task("ask")
    content: dict[str, Any] = {"body": "More\ntext", "params": {"reason": REASON, "n": 1}, **fields}
    await run.airflow.request_input(run.key, "ask", **content)
    await run.step()
    await run.set_task("ask", state)
    await run.step()


async def _go_on(run: ScenarioRun) -> None:
    for state in ("queued", "running"):
        await run.set_task("ask", state)
    await run.return_value("ask", {"chosen_options": ["Approve"]})
    await run.run_task("answer", "yes")
    await run.finish_chain()
