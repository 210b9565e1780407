"""Runs of each kind: the tries in their frames are the attempts that Airflow's REST API reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.processes import ChildProcess, log_path, module_command
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from stream_server.client import answer_input
from stream_server.domain.run_state import RunKey
from support.airflow_version import HAS_LOOPS
from support.example_runs import wait_before_answer
from support.streams import Events, Frame, sse
from support.waiting import eventually

pytestmark = pytest.mark.core

RUN_SECONDS = 300.0

Instance = tuple[str, int | None, int]
"""A task, its iteration and its `map_index`."""

GIVEN_UP = {"up_for_retry": "failed", "restarting": "failed"}
"""The state in which Airflow archives a try that was given up, by its last state in the frames."""


class Kind(NamedTuple):
    """A kind of run."""

    dag_id: str
    run_state: str
    tries: dict[Instance, list[str]]
    """States of the tries of some instances, for the sake of the test: what it compares must have these."""


KINDS = {
    "mapped and retried": Kind(
        "attempts_mapped_and_retried",
        "failed",
        {
            ("numbers", None, -1): ["success"],
            ("each", None, 0): ["success"],
            ("each", None, 1): ["failed", "success"],
            ("each", None, 2): ["failed", "failed"],
        },
    ),
    "deferred": Kind("attempts_deferred", "success", {("wait", None, -1): ["success"]}),
    "cleared": Kind(
        "mapped_squares",
        "success",
        {("square", None, index): ["success", "success"] for index in range(3)},
    ),
    "cleared while it runs": Kind("attempts_restarted", "success", {("work", None, -1): ["failed", "success"]}),
    "human input": Kind("human_input", "success", {("approve", None, -1): ["success"]}),
    "setup and teardown": Kind(
        "attempts_with_teardown",
        "failed",
        {
            ("work", None, -1): ["failed"],
            ("report", None, -1): ["upstream_failed"],
            ("close_it", None, -1): ["success"],
        },
    ),
    **(
        {
            "loop": Kind(
                "loop_drafts",
                "success",
                {
                    ("revise.draft", 0, -1): ["success"],
                    ("revise.draft", 1, -1): ["failed", "success"],
                    ("revise.draft", 2, -1): ["success"],
                },
            )
        }
        if HAS_LOOPS
        else {}
    ),
}

CONFS: dict[str, dict[str, Any]] = {"mapped_squares": {"numbers": [3, 1, 2]}}


class Runs:
    """Triggers the runs, and reads their frames until they end.

    Args:
        stack: The stack.
        airflow: Airflow's REST API, as an admin.
    """

    def __init__(self, stack: DemoStack, airflow: AirflowRestClient) -> None:
        self._stack = stack
        self._airflow = airflow
        self._handlers: dict[str, Callable[[RunKey, Frame], Awaitable[None]]] = {
            "attempts_restarted": self._clear_running_task,
            "human_input": self._approve,
        }

    async def run_all(self) -> dict[str, tuple[RunKey, list[Frame]]]:
        """Return the run of each kind with all its frames, from its creation on."""
        runs = await asyncio.gather(*(self._run(kind.dag_id) for kind in KINDS.values()))
        return dict(zip(KINDS, runs, strict=True))

    async def _run(self, dag_id: str) -> tuple[RunKey, list[Frame]]:
        headers = {"Authorization": f"Bearer {self._airflow.token}", "Accept": "text/event-stream"}
        path = f"/api/v2/dags/{dag_id}/dagRuns?wait_for_completion=true&until=run"
        async with (
            httpx.AsyncClient(base_url=self._stack.server_url, headers=headers, timeout=RUN_SECONDS) as client,
            client.stream("POST", path, json={"conf": CONFS.get(dag_id, {})}) as response,
        ):
            assert response.status_code == httpx.codes.OK, await response.aread()
            frames = await asyncio.wait_for(self._read(Events(response, RUN_SECONDS)), RUN_SECONDS)
        key = RunKey(dag_id, frames[0]["run_id"])
        if dag_id == KINDS["cleared"].dag_id:
            await self._request("POST", f"{path_of(key)}/clear", json={"dry_run": False})
            async with sse(self._stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
                frames += await asyncio.wait_for(self._read(events), RUN_SECONDS)
        return key, frames

    async def _read(self, events: Events) -> list[Frame]:
        frames: list[Frame] = []
        async for frame in events:
            frames.append(frame)
            if frame["type"] == "task" and (handler := self._handlers.get(frame["dag_id"])) is not None:
                await handler(RunKey(frame["dag_id"], frame["run_id"]), frame)
        return frames

    async def _clear_running_task(self, key: RunKey, frame: Frame) -> None:
        if (frame["state"], frame["try_number"]) == ("running", 1):
            body = {"dry_run": False, "dag_run_id": key.run_id, "task_ids": [frame["task_id"]], "only_failed": False}
            await self._request("POST", f"/dags/{key.dag_id}/clearTaskInstances", json=body)

    async def _approve(self, key: RunKey, frame: Frame) -> None:
        if frame["state"] == "awaiting_input":
            await wait_before_answer()
            url, token = self._stack.server_url, self._airflow.token
            await answer_input(url, *key, frame["task_id"], ["Approve"], token=token)

    async def _request(self, method: str, path: str, **arguments: Any) -> None:
        response = await asyncio.to_thread(self._airflow.request, method, path, **arguments)
        assert response.is_success, response.text


@pytest.fixture(scope="module")
def runs(stack: DemoStack, airflow: AirflowRestClient) -> Iterator[dict[str, tuple[RunKey, list[Frame]]]]:
    """A run of each kind, all at the same time."""
    triggerer = ChildProcess(
        "Airflow triggerer",
        module_command("airflow", "triggerer", "--skip-serve-logs", python=stack.airflow.python),
        log=log_path(stack.logs, "Airflow triggerer"),
        environment=stack.airflow.environment,
    )
    triggerer.start()
    try:
        stack.airflow.wait_for_dags([kind.dag_id for kind in KINDS.values()], ConsoleReporter())
        eventually(lambda: airflow.is_healthy("triggerer"), RUN_SECONDS, "the triggerer is healthy")
        yield asyncio.run(Runs(stack, airflow).run_all())
    finally:
        triggerer.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_tries_in_the_frames_are_airflows_attempts(
    airflow: AirflowRestClient, runs: dict[str, tuple[RunKey, list[Frame]]], kind: str
) -> None:
    key, frames = runs[kind]
    found = tries_in(frames)
    assert found == await asyncio.to_thread(attempts_in_airflow, airflow, key)
    assert {instance: [*found[instance].values()] for instance in KINDS[kind].tries} == KINDS[kind].tries
    assert frames[-1]["state"] == (await asyncio.to_thread(airflow.get_run, *key))["state"] == KINDS[kind].run_state


@pytest.mark.parametrize("kind", KINDS)
async def test_a_later_snapshot_has_airflows_task_instances(
    stack: DemoStack, airflow: AirflowRestClient, runs: dict[str, tuple[RunKey, list[Frame]]], kind: str
) -> None:
    key, _ = runs[kind]
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        snapshot = await events.next()
    members = ("map_index", "try_number", "state", "start_date", "end_date")
    in_airflow = await asyncio.to_thread(instances_in_airflow, airflow, key)
    assert {instance_of(task): [task[name] for name in members] for task in snapshot["tasks"]} == {
        instance: [task[name] for name in members] for instance, task in in_airflow.items()
    }


def tries_in(frames: list[Frame]) -> dict[Instance, dict[int, str]]:
    """Return the last state of each try by its number, by instance."""
    found: dict[Instance, dict[int, str]] = {}
    for frame in frames:
        for one in frame["tasks"] if frame["type"] == "snapshot" else [frame] if frame["type"] == "task" else []:
            task_id, iteration, map_index = instance_of(one)
            if map_index >= 0:
                # The placeholder of a mapped task, which was expanded.
                found.pop((task_id, iteration, -1), None)
            tries = found.setdefault((task_id, iteration, map_index), {})
            # Without a state, the instance waits for its first try, or was cleared: its last try has the old state.
            if one["state"] is not None:
                tries[one["try_number"]] = GIVEN_UP.get(one["state"], one["state"])
    return found


def attempts_in_airflow(airflow: AirflowRestClient, key: RunKey) -> dict[Instance, dict[int, str]]:
    """Return the state of each attempt by its number, by instance."""
    attempts: dict[Instance, dict[int, str]] = {}
    for instance, task in instances_in_airflow(airflow, key).items():
        task_id, _, map_index = instance
        region = {name: task[name] for name in ("region_id", "region_index") if task.get(name) is not None}
        path = f"{path_of(key)}/taskInstances/{task_id}/{map_index}/tries"
        tries = airflow.request("GET", path, params=region).raise_for_status().json()["task_instances"]
        attempts[instance] = {one["try_number"]: one["state"] for one in tries}
    return attempts


def instances_in_airflow(airflow: AirflowRestClient, key: RunKey) -> dict[Instance, dict[str, Any]]:
    """Return the task instances of a run, by instance."""
    found = airflow.request("GET", f"{path_of(key)}/taskInstances", params={"limit": 100}).raise_for_status().json()
    tasks = found["task_instances"]
    assert found["total_entries"] == len(tasks)
    return {
        (task["task_id"], (task.get("loop_iteration") or {}).get("iteration"), task["map_index"]): task
        for task in tasks
    }


def instance_of(one: dict[str, Any]) -> Instance:
    return one["task_id"], one.get("iteration"), one["map_index"]


def path_of(key: RunKey) -> str:
    return f"/dags/{key.dag_id}/dagRuns/{key.run_id}"
