"""Runs that people change: cleared, marked, deleted and created again."""

from __future__ import annotations

from support.airflow_sql import CHAIN
from support.scenarios.play import Expected, Play, failure, result


async def cleared_while_running(play: Play) -> Expected:
    """A result was sent; its task is cleared, and has another result."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "first")
    await play.step()
    await play.airflow.clear(play.key, ["answer", "clean_up"])
    await play.step()
    await play.set_run("running")
    await play.start("answer")
    await play.step()
    await play.push("answer", "second")
    await play.set("answer", "success")
    await play.finish_chain()
    return result(answer="second")


async def cleared_after_the_end(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "first")
    await play.finish_chain()
    await play.step()
    await play.airflow.clear(play.key, ["answer", "clean_up"])
    await play.step()
    await play.set_run("running")
    await play.run("answer", "second")
    await play.step()
    await play.finish_chain()
    return result(answer="second")


async def cleared_then_failed(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "first")
    await play.finish_chain()
    await play.step()
    await play.airflow.clear(play.key, ["answer"])
    await play.set_run("running")
    await play.start("answer")
    await play.step()
    await play.set("answer", "failed")
    await play.set_run("failed")
    return failure("task_failed", "answer", map_index=-1, try_number=2)


async def failed_then_cleared(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.set("ask", "failed")
    await play.set("answer", "upstream_failed")
    await play.run("clean_up", None)
    await play.set_run("failed")
    await play.step()
    await play.airflow.clear(play.key, ["ask", "answer"])
    await play.step()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "at last")
    await play.set_run("success")
    return result(answer="at last")


async def result_marked_failed(play: Play) -> Expected:
    """A person marks the result task as failed after its result was sent."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "wrong")
    await play.step()
    await play.set("answer", "failed")
    await play.step()
    await play.run("clean_up", None)
    await play.set_run("failed")
    return failure("task_failed", "answer", map_index=-1, try_number=1)


async def failure_marked_success(play: Play) -> Expected:
    """A person marks a failed task as successful; the run goes on."""
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.set("ask", "failed")
    await play.step()
    await play.set("ask", "success")
    await play.step()
    await play.run("answer", "after all")
    await play.finish_chain()
    return result(answer="after all")


async def run_marked_failed(play: Play) -> Expected:
    """A person marks a run as failed: running tasks fail, the others are skipped (`set_dag_run_state_to_failed`)."""
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.step()
    async with play.airflow.connection.transaction():
        await play.set("ask", "failed")
        for task_id in ("answer", "clean_up"):
            await play.set(task_id, "skipped")
        await play.set_run("failed")
    return Expected("failure", {})


async def deleted_run(play: Play) -> Expected:
    await play.trigger()
    await play.set_run("running")
    await play.start("ask")
    await play.step()
    await play.airflow.delete_run(play.key)
    return failure("run_deleted")


async def created_again(play: Play) -> Expected:
    """A run is deleted, and a new one gets its id."""
    await play.trigger()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "of the first")
    await play.step()
    await play.airflow.delete_run(play.key)
    await play.step()
    await play.airflow.trigger(play.key, play.version, list(CHAIN))
    await play.step()
    await play.set_run("running")
    await play.run("ask", 1)
    await play.run("answer", "of the second")
    await play.step()
    await play.finish_chain()
    return result(answer="of the second")
