"""Task loops of Airflow 3.4: the frames name the iteration, and agree with Airflow's REST API."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from stream_server.client import answer_input
from stream_server.domain.run_state import RunKey
from support.airflow_version import HAS_LOOPS
from support.example_runs import wait_before_answer
from support.streams import Frame, sse, types

if not HAS_LOOPS:
    pytest.skip("needs Airflow 3.4: make test-airflow AIRFLOW=3.4.0b2", allow_module_level=True)

RUN_SECONDS = 120.0

Attempt = tuple[str, int | None, int, int, str | None]
"""A task, its iteration, `map_index`, try and state."""


@pytest.fixture(scope="module", autouse=True)
def dags(stack: DemoStack) -> None:
    """Wait until Airflow has parsed the DAGs of these tests."""
    stack.airflow.wait_for_dags(["loop_drafts", "loop_squares", "loop_fails", "loop_questions"], ConsoleReporter())


async def run_dag(stack: DemoStack, airflow: AirflowRestClient, dag_id: str, query: str) -> tuple[RunKey, list[Frame]]:
    key = RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id))
    async with sse(stack.server_url, key, query, timeout=RUN_SECONDS) as events:
        return key, await events.rest(RUN_SECONDS)


async def snapshot_of(stack: DemoStack, key: RunKey) -> Frame:
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        return (await events.rest(RUN_SECONDS))[0]


def last_attempts(frames: list[Frame]) -> set[Attempt]:
    """Return the last state of each task instance, without placeholders that an expansion replaced."""
    found: dict[tuple[str, int | None], dict[int, Attempt]] = {}
    for frame in frames:
        for task in frame["tasks"] if frame["type"] == "snapshot" else [frame] if frame["type"] == "task" else []:
            of_task = found.setdefault((task["task_id"], task.get("iteration")), {})
            of_task[task["map_index"]] = (
                *(task["task_id"], task.get("iteration"), task["map_index"]),
                *(task["try_number"], task["state"]),
            )
            if task["map_index"] >= 0:
                of_task.pop(-1, None)
    return {attempt for of_task in found.values() for attempt in of_task.values()}


def attempts_in_airflow(airflow: AirflowRestClient, key: RunKey) -> set[Attempt]:
    path = f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances"
    found = airflow.request("GET", path, params={"limit": 100}).raise_for_status().json()["task_instances"]
    return {
        (
            *(one["task_id"], (one.get("loop_iteration") or {}).get("iteration")),
            *(one["map_index"], one["try_number"], one["state"]),
        )
        for one in found
    }


@pytest.mark.core
async def test_frames_of_a_loop_are_airflows_attempts(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key, frames = await run_dag(stack, airflow, "loop_drafts", "?until=run&result=revise.check")
    assert last_attempts(frames) == await asyncio.to_thread(attempts_in_airflow, airflow, key)
    assert ("revise.draft", 1, -1, 2, "success") in last_attempts(frames)
    output = [(frame["iteration"], frame["value"]) for frame in last_snapshot_on(frames) if frame["type"] == "chunk"]
    assert output == [(0, "draft 0, try 1"), (1, "draft 1, try 2"), (2, "draft 2, try 1")]
    assert [frame["reason"] for frame in frames if frame["type"] == "reset"] == ["retried"]
    read = await snapshot_of(stack, key)
    assert last_attempts([read]) == last_attempts(frames)
    assert [one["iteration"] for one in read["tasks"] if one["task_id"] == "revise.draft"] == [0, 1, 2]


async def test_the_result_is_the_value_of_the_last_iteration_and_comes_before_the_end(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    _, frames = await run_dag(stack, airflow, "loop_drafts", "?result=revise.check")
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"revise.check": "xxx"}]
    assert (frames[-1]["state"], frames[-1]["outcome"]) == ("running", "result")


@pytest.mark.core
async def test_a_mapped_task_is_expanded_in_each_iteration(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key, frames = await run_dag(stack, airflow, "loop_squares", "?until=run")
    assert last_attempts(frames) == await asyncio.to_thread(attempts_in_airflow, airflow, key)
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"repeat.square": [16, 81]}]
    assert last_attempts([await snapshot_of(stack, key)]) == last_attempts(frames)


@pytest.mark.core
async def test_a_failure_names_the_iteration(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key, frames = await run_dag(stack, airflow, "loop_fails", "?until=run&result=publish")
    (failure,) = [frame for frame in frames if frame["type"] == "failure"]
    assert (failure["task_id"], failure["iteration"], failure["predicted"]) == ("attempt.step", 1, True)
    output = [(frame["iteration"], frame["value"]) for frame in frames if frame["type"] == "chunk"]
    assert output == [(iteration, text) for iteration in (0, 1) for text in (f"step {iteration}", "last output")]
    assert last_attempts(frames) == await asyncio.to_thread(attempts_in_airflow, airflow, key)


@pytest.mark.core
async def test_a_client_resumes_across_iterations_without_a_reset(stack: DemoStack, airflow: AirflowRestClient) -> None:
    """The next iteration creates a task instance without a state, which retracts no output of the earlier one."""
    key = RunKey("loop_fails", await asyncio.to_thread(airflow.trigger_run, "loop_fails"))
    query = "?until=run&result=publish"
    async with sse(stack.server_url, key, query, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
        cursors = list(events.ids)
    place = next(index for index, frame in enumerate(frames) if frame["type"] == "chunk" and cursors[index])
    async with sse(stack.server_url, key, f"{query}&cursor={cursors[place]}", timeout=RUN_SECONDS) as events:
        resumed = await events.rest(RUN_SECONDS)
    assert resumed[0]["type"] == "resumed"
    assert [frame["seq"] for frame in resumed if frame["type"] in {"task", "chunk"}] == [
        frame["seq"] for frame in frames[place + 1 :] if frame["type"] in {"task", "chunk"}
    ]


async def test_clearing_the_gate_starts_the_next_iterations_again(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key, _ = await run_dag(stack, airflow, "loop_squares", "?until=run")
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        await events.next()
    body = {"dry_run": False, "task_ids": ["repeat.numbers"], "include_downstream": True, "only_failed": False}
    cleared = await asyncio.to_thread(
        airflow.request, "POST", f"/dags/{key.dag_id}/clearTaskInstances", json={**body, "dag_run_id": key.run_id}
    )
    assert cleared.is_success, cleared.text
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    assert frames[-1]["state"] == "success"
    assert last_attempts(last_snapshot_on(frames)) == await asyncio.to_thread(attempts_in_airflow, airflow, key)
    assert last_attempts([await snapshot_of(stack, key)]) == last_attempts(last_snapshot_on(frames))


def last_snapshot_on(frames: list[Frame]) -> list[Frame]:
    start = max(index for index, frame in enumerate(frames) if frame["type"] == "snapshot")
    return frames[start:]


async def test_wait_refuses_tasks_in_a_loop(stack: DemoStack, airflow: AirflowRestClient, token: str) -> None:
    key = RunKey("loop_squares", await asyncio.to_thread(airflow.trigger_run, "loop_squares"))
    path = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/wait?interval=0.1"
    headers = {"Authorization": f"Bearer {token}"}
    answers: list[list[tuple[int, Any]]] = []
    for url in (stack.airflow_url, stack.server_url):
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=RUN_SECONDS) as caller:
            refused = await caller.get(f"{path}&result=repeat.square")
            waited = await caller.get(path)
            answers.append([(refused.status_code, refused.json()), (waited.status_code, waited.text.splitlines()[-1])])
    native, ours = answers
    assert ours == native
    assert ours[0][0] == 409


async def test_each_iteration_asks_and_is_answered(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = RunKey("loop_questions", await asyncio.to_thread(airflow.trigger_run, "loop_questions"))
    frames: list[Frame] = []
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        async for frame in events:
            frames.append(frame)
            if (frame["type"], frame.get("state")) == ("task", "awaiting_input"):
                await wait_before_answer()
                instance = {name: frame[name] for name in ("map_index", "iteration")}
                given = await answer_input(
                    stack.server_url, *key, frame["task_id"], ["Approve"], **instance, token=airflow.token
                )
                assert (given["iteration"], given["chosen_options"]) == (frame["iteration"], ["Approve"])
    requested = {
        (frame["iteration"], frame["try_number"], frame["asked_at"]) for frame in frames if frame["type"] == "input"
    }
    answered = [frame for frame in frames if frame["type"] == "input_answered"]
    assert sorted((frame["iteration"], frame["try_number"], frame["asked_at"]) for frame in answered) == sorted(
        requested
    )
    assert [iteration for iteration, *_ in sorted(requested)] == [0, 1]
    assert frames[-1]["state"] == "success"
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        later = await events.rest(RUN_SECONDS)
    assert [frame["iteration"] for frame in later if frame["type"] == "input_answered"] == [0, 1]


async def test_a_result_of_a_loop_is_not_sent_while_it_continues(stack: DemoStack, airflow: AirflowRestClient) -> None:
    _, frames = await run_dag(stack, airflow, "loop_drafts", "?until=run&result=revise.draft")
    kinds = types(frames)
    gates = [
        index
        for index, frame in enumerate(frames)
        if frame["type"] == "task" and frame["task_id"] == "revise.is_long_enough" and frame["state"] == "success"
    ]
    assert kinds.index("result") > gates[-1]
    assert len(gates) == 3
