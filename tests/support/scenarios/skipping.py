"""Runs whose result tasks are skipped, or that Airflow or a person ends."""

from __future__ import annotations

from support.scenarios.scenario_run import Expected, ScenarioRun, failure, no_outcome, result
from support.serialized_dags import Node

_MARK = {"stream_result": True}
_CHAIN = {"a": Node("b"), "b": Node("c"), "c": Node()}
_BRANCH = {
    "branch": Node("left", "right", _can_skip_downstream=True),
    "left": Node(params=_MARK),
    "right": Node(params=_MARK),
}


async def branch_with_two_marked_tasks(run: ScenarioRun) -> Expected:
    await run.start_run(_BRANCH)
    await run.start_task("branch")
    await run.skip("left")
    await run.set_task("branch", "success")
    await run.step()
    await run.run_task("right", 2)
    await run.step()
    await run.set_run("success")
    return result(right=2)


async def branch_that_skips_all_result_tasks(run: ScenarioRun) -> Expected:
    await run.start_run(_BRANCH)
    await run.start_task("branch")
    await run.skip("left")
    await run.skip("right")
    await run.set_task("branch", "success")
    await run.step()
    await run.set_run("success")
    return no_outcome("task_skipped", "left")


async def skipped_instance_of_a_mapped_task(run: ScenarioRun) -> Expected:
    await run.start_run({"square": Node(mapped_over=[1, 2, 3])})
    await run.airflow.expand(run.key, run.version, "square", 3)
    await run.start_task("square", 1)
    await run.set_task("square", "skipped", 1)
    await run.step()
    for map_index in (0, 2):
        await run.run_task("square", map_index, map_index)
        await run.step()
    await run.set_run("success")
    return Expected("result", {"results": {"square": [0, 2]}, "map_indexes": {"square": [0, 2]}})


async def skipped_result_task_of_a_run_that_fails(run: ScenarioRun) -> Expected:
    await run.start_run({"answer": Node(params=_MARK), "log": Node()})
    await run.start_task("answer")
    await run.set_task("answer", "skipped")
    await run.step()
    await run.start_task("log")
    await run.set_task("log", "failed")
    await run.step()
    await run.set_run("failed")
    return failure("task_failed", "log")


async def marked_as_success(run: ScenarioRun) -> Expected:
    await run.start_run(_CHAIN)
    await run.run_task("a", 1)
    await run.start_task("b")
    await run.step()
    await run.mark_run("success")
    return no_outcome("run_ended")


async def marked_as_failed(run: ScenarioRun) -> Expected:
    await run.start_run(_CHAIN)
    await run.run_task("a", 1)
    await run.start_task("b")
    await run.step()
    await run.mark_run("failed")
    return failure("run_failed")


async def marked_as_failed_while_the_result_task_runs(run: ScenarioRun) -> Expected:
    await run.start_run({"c": Node()})
    await run.start_task("c")
    await run.step()
    await run.mark_run("failed")
    return failure("run_failed")


async def timeout(run: ScenarioRun) -> Expected:
    await run.start_run(_CHAIN)
    await run.run_task("a", 1)
    await run.start_task("b")
    await run.step()
    await run.time_out()
    return failure("run_failed")


async def timeout_before_a_task_is_expanded(run: ScenarioRun) -> Expected:
    await run.start_run({"list": Node("square"), "square": Node(mapped_over="list")})
    await run.start_task("list")
    await run.step()
    await run.time_out()
    return failure("run_failed")


async def empty_end(run: ScenarioRun) -> Expected:
    await run.start_run(
        {"start": Node("work", _is_empty=True), "work": Node("end"), "end": Node(_is_empty=True)},
    )
    await run.set_task("start", "success")
    await run.run_task("work", 1)
    await run.step()
    await run.set_task("end", "success")
    await run.set_run("success")
    return result(work=1)


async def watcher(run: ScenarioRun) -> Expected:
    await run.start_run(
        {
            "t1": Node("t2", "watcher"),
            "t2": Node("watcher"),
            "watcher": Node(trigger_rule="one_failed"),
        }
    )
    await run.run_task("t1", 1)
    await run.run_task("t2", 2)
    await run.step()
    await run.skip("watcher")
    await run.set_run("success")
    return result(t2=2)


async def watcher_of_a_failure(run: ScenarioRun) -> Expected:
    await run.start_run(
        {"t1": Node("t2", "watcher"), "t2": Node("watcher"), "watcher": Node(trigger_rule="one_failed")}
    )
    await run.start_task("t1")
    await run.set_task("t1", "failed")
    await run.step()
    await run.set_task("t2", "upstream_failed")
    await run.start_task("watcher")
    await run.set_task("watcher", "failed")
    await run.set_run("failed")
    return failure("task_failed", "t1")
