"""`make check-examples`, with a few small DAGs."""

from __future__ import annotations

import asyncio

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from support.example_check import check, chosen_examples, find_stale_entries, report_figures
from support.example_dags import LISTED, NOT_RUN, WITHOUT_DAGS, example_folders, files_naming
from support.example_runs import ComparedRun, ExampleRuns
from support.make_targets import run_to_its_end
from support.stack import FOR_CHECK
from support.waiting import eventually

RUN_SECONDS = 120.0
OUTCOMES = {
    "chat_answer": "result",
    "fail_before_teardown": "failure",
    "human_input": "result",
    "mapped_squares": "result",
}
REQUESTS = {"chat_answer": {"conf": {"teardown_seconds": 0}}, "fail_before_teardown": {"conf": {"teardown_seconds": 0}}}


async def test_runs_are_compared_with_airflow(stack: DemoStack, airflow: AirflowRestClient) -> None:
    for dag_id in OUTCOMES:
        await asyncio.to_thread(
            eventually, lambda dag_id=dag_id: airflow.get_dag(dag_id), RUN_SECONDS, f"{dag_id} is read"
        )
    runs = await check(stack.server_url, airflow, OUTCOMES, REQUESTS, jobs=2, within=RUN_SECONDS)
    assert [difference for run in runs for difference in run.differences] == []
    assert {run.key.dag_id: run.outcome for run in runs} == OUTCOMES
    figures = report_figures(runs)
    assert (figures["runs"], figures["inputs"], figures["differing"]) == (4, 1, [])
    assert not any((airflow.get_dag(dag_id) or {})["is_paused"] for dag_id in OUTCOMES)

    frames = runs[0].frames
    last = {(frame["type"], frame.get("task_id")): number for number, frame in enumerate(frames)}
    comparison = ExampleRuns(stack.server_url, airflow, RUN_SECONDS)
    for (kind, task_id), number in last.items():
        if kind in {"task", "run", "result", "end"}:
            damaged = ComparedRun(runs[0].key, frames[:number] + frames[number + 1 :])
            comparison.compare(damaged)
            assert damaged.differences, f"without the last frame {kind} of {task_id}"


def test_the_command_runs_the_examples_that_it_names(stack: DemoStack) -> None:
    options = f"--only {' '.join(FOR_CHECK)} --stack {stack.server_url} {stack.airflow_url}"
    figures = run_to_its_end("check-examples", f"ARGS={options}")
    assert (figures["runs"], figures["outcomes"]) == (2, {"result": 2})


async def test_a_run_that_does_not_end_in_time_is_a_difference(stack: DemoStack, airflow: AirflowRestClient) -> None:
    [run] = await check(stack.server_url, airflow, ["chat_answer"], {}, jobs=1, within=1)
    assert run.differences
    assert "did not end within 1 s" in run.differences[0]
    assert airflow.wait_until_finished(*run.key)


def test_entries_for_dags_that_do_not_exist_are_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = find_stale_entries([], example_folders())
    assert len(stale) >= len(NOT_RUN)
    assert all("Airflow has no such DAG" in line for line in stale)
    monkeypatch.setitem(WITHOUT_DAGS, "example_gone.py", "gone")
    assert "example_gone.py is listed, but Airflow has no such file" in find_stale_entries([], example_folders())


def test_only_the_files_of_the_chosen_dags_are_read() -> None:
    with chosen_examples(["example_external_task"]) as folder:
        assert folder is not None
        names = {path.name for path in folder.iterdir()}
    assert {"example_external_task_parent_deferrable.py", "example_external_task_child_deferrable.py"} <= names
    assert len(names) < 5
    # The one needs a plugin, which Airflow loads with all of its folders.
    for dag_ids in (["example_workday_timetable"], ["no_such_dag"], None):
        with chosen_examples(dag_ids) as folder:
            assert folder is None
    assert [dag_id for dag_id in LISTED if not files_naming([dag_id])] == []
