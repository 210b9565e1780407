"""Runs of DAGs, followed over SSE until they end, and compared with Airflow's REST API."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import httpx

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.domain.run_state import RunKey
from stream_server.domain.snapshot_tasks import MAX_LISTED_INSTANCES
from support.run_knowledge import NO_STATUS, Index, RunKnowledge, index_of
from support.streams import Frame, sse

WEDNESDAY = 2
PAGE = 100
WAITS_FOR_INPUT = {"awaiting_input", "deferred"}
"""States of a task that waits for a person: of Airflow 3.3, and of 3.1 and 3.2."""

LOOP_GATE = "LoopGateOperator"
EMPTY_OPERATORS = {"EmptyOperator", "ExternalTaskMarker"}
"""Those of the examples that Airflow does not run."""

ANSWER_SECONDS = 3.0
"""Time that a person takes at least. Airflow 3.3 lets the task fail where the answer comes before its scheduler has
handled the end of the process that asked; no API shows when it has."""


async def wait_before_answer() -> None:
    """Wait as long as a person takes; see `ANSWER_SECONDS`."""
    await asyncio.sleep(ANSWER_SECONDS)


@dataclass
class ComparedRun:
    """What a client knows about a run, and how that differs from Airflow's API."""

    key: RunKey
    frames: list[Frame] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    """Task instances by state."""

    state: str = ""
    """Of the run, in Airflow."""

    outcome: str = ""
    """As Airflow's API implies it."""

    inputs: int = 0
    """Requests for input that were answered."""

    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


class InstanceInAirflow(NamedTuple):
    """A task instance, as Airflow's API has it."""

    state: str | None
    try_number: int
    coordinates: dict[str, Any]
    """Query parameters that name it, beside the task."""


Instances = Mapping[str, Mapping[Index, InstanceInAirflow]]
"""By task and index."""


class ExampleRuns:
    """Triggers runs and compares them.

    Args:
        url: Address of stream_server.
        rest: Airflow's REST API, as an admin.
        within: Seconds for each run.
    """

    def __init__(self, url: str, rest: AirflowRestClient, within: float) -> None:
        self._url = url
        self._rest = rest
        self._within = within

    async def run(self, dag_id: str, request: Mapping[str, Any] | None = None) -> ComparedRun:
        """Trigger a run, follow it until it ends, and compare it."""
        started = time.monotonic()
        body = {"logical_date": _last_wednesday().isoformat(), **(request or {})}
        response = await self._request("POST", f"/dags/{dag_id}/dagRuns", json=body)
        if response.is_error:
            refused = f"Airflow refused the trigger: {response.status_code} {response.text}"
            return ComparedRun(RunKey(dag_id, ""), differences=[refused])
        run = ComparedRun(RunKey(dag_id, response.json()["dag_run_id"]))
        try:
            await asyncio.wait_for(self._follow(run), self._within)
        except (AssertionError, httpx.HTTPError) as error:
            run.differences.append(f"the stream failed: {error!r}")
        except asyncio.TimeoutError:
            states = await asyncio.to_thread(self._rest.get_task_states, *run.key)
            run.differences.append(f"the run did not end within {self._within:.0f} s; its tasks: {states}")
            await self._request("PATCH", _path(run.key), json={"state": "failed"})
        else:
            await asyncio.to_thread(self.compare, run)
        run.seconds = round(time.monotonic() - started, 1)
        return run

    async def _follow(self, run: ComparedRun) -> None:
        """Read all frames of a run, and answer its requests for input."""
        async with sse(self._url, run.key, "?until=run", timeout=self._within + 10) as events:
            if events.response.is_error:
                await events.response.aread()
                raise AssertionError(f"{events.response.status_code} {events.response.text}")
            async for frame in events:
                run.frames.append(frame)
                if frame.get("state") in WAITS_FOR_INPUT or frame["type"] == "snapshot":
                    await self._answer_requests(run)

    async def _answer_requests(self, run: ComparedRun) -> None:
        """Choose the first option of each request for input that has no answer."""
        found = await self._request("GET", f"{_path(run.key)}/hitlDetails", params={"response_received": False})
        if found.status_code == httpx.codes.NOT_FOUND:
            return
        details = found.raise_for_status().json()["hitl_details"]
        waiting = [detail for detail in details if detail["task_instance"]["state"] in WAITS_FOR_INPUT]
        if waiting:
            await wait_before_answer()
        for detail in waiting:
            instance = detail["task_instance"]
            path = f"{_path(run.key)}/taskInstances/{instance['task_id']}/{instance['map_index']}/hitlDetails"
            answer = {"chosen_options": detail["options"][:1], "params_input": _given_params(detail["params"])}
            answered = await self._request("PATCH", path, json=answer, params=_region_of(instance))
            # A request with a timeout and defaults may have its answer by now.
            if answered.status_code != httpx.codes.CONFLICT:
                answered.raise_for_status()
                run.inputs += 1

    def compare(self, run: ComparedRun) -> None:
        """Record each difference between the frames of a run that has ended and Airflow's API."""
        known = RunKnowledge().apply_all(run.frames)
        last = run.frames[-1]["type"] if run.frames else None
        _expect(run, "the last frame", last, "end")
        run.state = self._rest.get_run(*run.key)["state"]
        _expect(run, "the state of the run", known.run and known.run[0], run.state)
        tasks = self._read_tasks(run.key)
        run.states = Counter(one.state or NO_STATUS for by_index in tasks.values() for one in by_index.values())
        for task_id in sorted({*tasks, *known.tables.tasks}):
            of_airflow = {index: (one.state, one.try_number) for index, one in tasks.get(task_id, {}).items()}
            counts = Counter(state or NO_STATUS for state, _ in of_airflow.values())
            expected = counts if len(of_airflow) > MAX_LISTED_INSTANCES else of_airflow
            _expect(run, f"the instances of {task_id}", known.tables.tasks.get(task_id, {}), expected)
        run.outcome, results = self._expected_outcome(run, tasks)
        _expect(run, "the outcome", known.end, run.outcome)
        received = (known.outcome or {}).get("results", {})
        _expect(run, "the results", received, _without(results, (known.outcome or {}).get("references", {})))

    def _read_tasks(self, key: RunKey) -> Instances:
        tasks: dict[str, dict[Index, InstanceInAirflow]] = {}
        offset, total = 0, 1
        while offset < total:
            page = self._get(f"{_path(key)}/taskInstances", limit=PAGE, offset=offset)
            for instance in page["task_instances"]:
                index = index_of({**instance, **(instance.get("loop_iteration") or {})})
                tasks.setdefault(instance["task_id"], {})[index] = InstanceInAirflow(
                    instance["state"],
                    instance["try_number"],
                    {"map_index": instance["map_index"], **_region_of(instance)},
                )
            offset, total = offset + PAGE, page["total_entries"]
        return tasks

    def _expected_outcome(self, run: ComparedRun, tasks: Instances) -> tuple[str, dict[str, Any]]:
        """Return the outcome and the results, after `docs/protocol.md`, from Airflow's API alone."""
        native = self._rest.wait_at_airflow(*run.key).get("results")
        if native:
            return "result", native
        answering = self._find_answering_tasks(run.key.dag_id)
        if len(answering) != 1:
            return "none" if run.state == "success" else "failure", {}
        task_id = answering[0]
        instances = _last_iteration(tasks.get(task_id, {}))
        if instances and all(one.state == "success" for one in instances.values()):
            values = [self._read_value(run.key, task_id, instances[index]) for index in sorted(instances)]
            return "result", {task_id: values[0] if -1 in instances else values}
        return "none" if run.state == "success" else "failure", {}

    def _find_answering_tasks(self, dag_id: str) -> list[str]:
        """Return the leaves that can answer. The last task of a loop replaces its gate."""
        found = self._get(f"/dags/{dag_id}/tasks")["tasks"]
        # The API does not name teardowns; no other task has this rule.
        teardowns = {task["task_id"] for task in found if task["trigger_rule"] == "all_done_setup_success"}
        below = {task["task_id"]: set(task["downstream_task_ids"]) - teardowns for task in found}
        left = {task["task_id"]: task for task in found if task["task_id"] not in teardowns}
        while silent := [task_id for task_id, task in left.items() if not below[task_id] and _is_silent(task)]:
            for task_id in silent:
                del left[task_id]
            below = {task_id: tasks - set(silent) for task_id, tasks in below.items()}
        answering: list[str] = []
        for task_id, leaf in left.items():
            if not below[task_id] and leaf["operator_name"] == LOOP_GATE:
                answering += [one for one, tasks in below.items() if task_id in tasks]
            elif not below[task_id]:
                answering.append(task_id)
        return answering

    def _read_value(self, key: RunKey, task_id: str, instance: InstanceInAirflow) -> Any:
        path = f"{_path(key)}/taskInstances/{task_id}/xcomEntries/return_value"
        found = self._rest.request("GET", path, params={**instance.coordinates, "deserialize": False})
        return None if found.status_code == httpx.codes.NOT_FOUND else found.raise_for_status().json()["value"]

    def _get(self, path: str, **params: object) -> dict[str, Any]:
        return dict(self._rest.request("GET", path, params=params).raise_for_status().json())

    async def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return await asyncio.to_thread(self._rest.request, method, path, **arguments)


def _is_silent(task: Mapping[str, Any]) -> bool:
    """Whether a task can never return a value, or runs only if something failed."""
    return task["operator_name"] in EMPTY_OPERATORS or task["trigger_rule"] in {"one_failed", "all_failed"}


def _last_iteration(instances: Mapping[Index, InstanceInAirflow]) -> dict[int, InstanceInAirflow]:
    """Return the instances of a task by `map_index`; in a loop those of the last iteration."""
    places = {index: index if isinstance(index, tuple) else (0, index) for index in instances}
    last = max((iteration for iteration, _ in places.values()), default=0)
    return {places[index][1]: one for index, one in instances.items() if places[index][0] == last}


def _region_of(instance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the query parameters by which Airflow 3.4 distinguishes the iterations of a loop."""
    return {name: instance[name] for name in ("region_id", "region_index") if instance.get(name) is not None}


def _path(key: RunKey) -> str:
    return f"/dags/{key.dag_id}/dagRuns/{key.run_id}"


def _expect(run: ComparedRun, what: str, received: object, expected: object) -> None:
    if received != expected:
        run.differences.append(f"{what}: the frames have {received!r}, Airflow has {expected!r}")


def _without(results: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results whose values a frame has."""
    return {task_id: value for task_id, value in results.items() if task_id not in references}


def _given_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for each parameter of a request for input."""
    return {name: param["value"] if isinstance(param, dict) else param for name, param in params.items()}


def _last_wednesday() -> datetime:
    """Return this time of day on the last Wednesday: some examples do something else on weekends, and no run may
    begin in the future."""
    now = datetime.now(timezone.utc)
    return now - timedelta(days=(now.weekday() - WEDNESDAY) % 7 or 7)
