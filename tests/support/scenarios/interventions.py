"""Runs that people change: cleared, marked, deleted and created again."""

from __future__ import annotations

from support.airflow_sql import CHAIN
from support.scenarios.scenario_run import Expected, ScenarioRun, failure, result
from support.serialized_dags import Node


async def cleared_while_running(run: ScenarioRun) -> Expected:
    """A result was sent; its task is cleared, and has another result."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "first")
    await run.step()
    await run.airflow.clear(run.key, ["answer", "clean_up"])
    await run.step()
    await run.set_run("running")
    await run.start_task("answer")
    await run.step()
    await run.return_value("answer", "second")
    await run.finish_chain()
    return result(answer="second")


async def cleared_after_the_end(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "first")
    await run.finish_chain()
    await run.step()
    await run.airflow.clear(run.key, ["answer", "clean_up"])
    await run.step()
    await run.set_run("running")
    await run.run_task("answer", "second")
    await run.step()
    await run.finish_chain()
    return result(answer="second")


async def cleared_then_failed(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "first")
    await run.finish_chain()
    await run.step()
    await run.airflow.clear(run.key, ["answer"])
    await run.set_run("running")
    await run.start_task("answer")
    await run.step()
    await run.set_task("answer", "failed")
    await run.set_run("failed")
    return failure("task_failed", "answer", map_index=-1, try_number=2)


async def failed_then_cleared(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.start_task("ask")
    await run.set_task("ask", "failed")
    await run.set_task("answer", "upstream_failed")
    await run.run_task("clean_up", None)
    await run.set_run("failed")
    await run.step()
    await run.airflow.clear(run.key, ["ask", "answer"])
    await run.step()
    await run.set_run("running")
    await run.run_task("ask", 1)
    await run.run_task("answer", "at last")
    await run.set_run("success")
    return result(answer="at last")


async def result_marked_failed(run: ScenarioRun) -> Expected:
    """A person marks the result task as failed after its result was sent."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "wrong")
    await run.step()
    await run.set_task("answer", "failed")
    await run.step()
    await run.run_task("clean_up", None)
    await run.set_run("failed")
    return failure("task_failed", "answer", map_index=-1, try_number=1)


async def failure_marked_success(run: ScenarioRun) -> Expected:
    """A person marks a failed task as successful; the run goes on."""
    await run.start_run()
    await run.start_task("ask")
    await run.set_task("ask", "failed")
    await run.step()
    await run.set_task("ask", "success")
    await run.step()
    await run.run_task("answer", "after all")
    await run.finish_chain()
    return result(answer="after all")


async def run_marked_failed(run: ScenarioRun) -> Expected:
    """A person marks a run as failed: running tasks fail, the others are skipped (`set_dag_run_state_to_failed`)."""
    await run.start_run()
    await run.start_task("ask")
    await run.step()
    async with run.airflow.connection.transaction():
        await run.set_task("ask", "failed")
        for task_id in ("answer", "clean_up"):
            await run.set_task(task_id, "skipped")
        await run.set_run("failed")
    return failure("run_failed")


async def deleted_run(run: ScenarioRun) -> Expected:
    await run.start_run()
    await run.start_task("ask")
    await run.step()
    await run.airflow.delete_run(run.key)
    return failure("run_deleted")


async def created_again(run: ScenarioRun) -> Expected:
    """A run is deleted, and a new one gets its id."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "of the first")
    await run.step()
    await run.airflow.delete_run(run.key)
    await run.step()
    await run.airflow.trigger(run.key, run.version, list(CHAIN))
    await run.step()
    await run.set_run("running")
    await run.run_task("ask", 1)
    await run.run_task("answer", "of the second")
    await run.step()
    await run.finish_chain()
    return result(answer="of the second")


async def new_dag_version(run: ScenarioRun) -> Expected:
    """The run takes up a version in which another task is the only leaf (`DagRun.verify_integrity`)."""
    await run.start_run()
    await run.start_task("ask")
    await run.step()
    changed = {"ask": ["check"], "check": ["answer2"], "answer2": ["clean_up"], "clean_up": []}
    version = await run.airflow.add_dag(run.key.dag_id, changed, {"clean_up": False})
    await run.step()
    async with run.airflow.connection.transaction():
        await run.airflow.move_to_version(run.key, version, ["answer", "clean_up"])
        await run.set_task("answer", "removed")
        for task_id in ("check", "answer2"):
            await run.airflow.add_instance(run.key, version, task_id, -1)
    await run.step()
    await run.return_value("ask", 1)
    await run.run_task("check", True)
    await run.step()
    await run.run_task("answer2", "of the new version")
    await run.step()
    await run.finish_chain()
    return result(answer2="of the new version")


async def new_task_in_an_unchanged_version(run: ScenarioRun) -> Expected:
    """A run whose instances have ended gets the tasks of another version."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "of the old version")
    await run.run_task("clean_up", None)
    await run.step()
    changed = {"ask": ["answer"], "answer": ["review"], "review": ["clean_up"], "clean_up": []}
    version = await run.airflow.add_dag(run.key.dag_id, changed, {"clean_up": False})
    await run.airflow.add_instance(run.key, version, "review", -1)
    await run.step()
    await run.run_task("review", "of the new version")
    await run.step()
    await run.set_run("success")
    return result(review="of the new version")


async def deleted_instances(run: ScenarioRun) -> Expected:
    """Instances are deleted (`DELETE …/taskInstances/{task_id}`); the scheduler creates them again."""
    await run.start_run()
    await run.run_task("ask", 1)
    await run.run_task("answer", "first")
    await run.step()
    await run.airflow.delete_instances(run.key, "answer")
    await run.step()
    await run.airflow.add_instance(run.key, run.version, "answer", -1)
    await run.step()
    await run.run_task("answer", "second")
    await run.step()
    await run.finish_chain()
    return result(answer="second")


async def version_changed_in_place(run: ScenarioRun) -> Expected:
    """All instances are deleted, so that Airflow changes the version itself (`SerializedDagModel.write_dag`)."""
    await run.start_run({"ask": Node("answer"), "answer": Node()})
    await run.run_task("ask", 1)
    await run.step()
    for task_id in ("ask", "answer"):
        await run.airflow.delete_instances(run.key, task_id)
    await run.step()
    before = run.version
    await run.write_version({"ask": Node(), "answer": Node("ask")})
    assert run.version == before
    await run.step()
    for task_id in ("ask", "answer"):
        await run.airflow.add_instance(run.key, run.version, task_id, -1)
    await run.step()
    await run.run_task("answer", 2)
    await run.step()
    await run.run_task("ask", "of the changed version")
    await run.set_run("success")
    return result(ask="of the changed version")
