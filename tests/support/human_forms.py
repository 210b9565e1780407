"""A run of `human_forms`, answered through a server, on any Airflow that has human input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from websockets.asyncio.client import connect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.client import Refused, answer_input
from stream_server.domain.run_state import RunKey
from support.airflow_callers import bearer_header
from support.example_runs import WAITS_FOR_INPUT, wait_before_answer
from support.streams import Events, Frame, sse

DAGS = Path(__file__).resolve().parents[1] / "airflow" / "dags_3_1"
DAG_ID = "human_forms"
RUN_SECONDS = 240.0

OPTIONS: Mapping[tuple[str, int], list[str]] = {
    ("several", -1): ["red", "green"],
    ("each", 0): ["yes"],
    ("each", 1): ["no"],
    ("assigned", -1): ["yes"],
    ("again", -1): ["yes"],
}
"""The answers, by task and map index. The request of `expiring` has none."""

FIELDS = {"count": 3, "note": "soon"}
"""What is filled in for `several`."""


@dataclass(frozen=True)
class Callers:
    """Tokens of Airflow."""

    assigned: str
    """Of its admin, one of the users that may answer for `assigned`."""

    unassigned: str
    """Of another user with the permission to answer."""

    reader: str
    """Of a user without that permission."""


class HumanForms:
    """Answers the requests of one run.

    Args:
        url: Address of a server that checks permissions.
        rest: Airflow's API, as its admin.
        callers: Users of Airflow.
    """

    def __init__(self, url: str, rest: AirflowRestClient, callers: Callers) -> None:
        self._url, self._rest, self._callers = url, rest, callers
        self._headers = bearer_header(callers.assigned)
        self.key = RunKey(DAG_ID, "not triggered")

    async def run(self) -> list[Frame]:
        """Trigger a run, answer its requests, and return its frames."""
        self.key = RunKey(DAG_ID, await asyncio.to_thread(self._rest.trigger_run, DAG_ID))
        async with sse(self._url, self.key, "?until=run", self._headers, timeout=RUN_SECONDS) as events:
            return await self._answer_all(events, OPTIONS)

    async def clear_and_answer(self, task_id: str) -> list[Frame]:
        """Clear a task of the finished run, answer its request, and return the frames.

        They begin with the requests and the answers of the other tasks.
        """
        body = {
            "dag_run_id": self.key.run_id,
            "task_ids": [task_id],
            "dry_run": False,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        cleared = await asyncio.to_thread(self._rest.request, "POST", f"/dags/{DAG_ID}/clearTaskInstances", json=body)
        assert cleared.is_success, cleared.text
        async with sse(self._url, self.key, "?until=run", self._headers, timeout=RUN_SECONDS) as events:
            return await self._answer_all(events, {(task_id, -1)})

    async def delete_and_answer(self) -> int:
        """Delete the run, and return the status of an answer after that."""
        path = f"/dags/{DAG_ID}/dagRuns/{self.key.run_id}"
        deleted = await asyncio.to_thread(self._rest.request, "DELETE", path)
        assert deleted.is_success, deleted.text
        return await self._refusal("several", -1, ["red"], self._callers.assigned)

    async def _answer_all(self, events: Events, instances: Collection[tuple[str, int]]) -> list[Frame]:
        frames: list[Frame] = []
        requests: dict[tuple[str, int], Frame] = {}
        async with anyio.create_task_group() as answers:
            with anyio.fail_after(RUN_SECONDS):
                async for frame in events:
                    frames.append(frame)
                    instance = frame.get("task_id", ""), frame.get("map_index", -1)
                    if instance not in instances:
                        continue
                    if frame["type"] == "input":
                        requests[instance] = frame
                    elif frame["type"] == "task" and frame["state"] in WAITS_FOR_INPUT:
                        # The task has asked before it waits. It is not answered before its process may end.
                        answers.start_soon(self._answer, requests[instance])
        return frames

    async def _answer(self, request: Frame) -> None:
        task_id, map_index = request["task_id"], request["map_index"]
        options = OPTIONS[task_id, map_index]
        if task_id == "assigned":
            assert await self._refusal(task_id, map_index, options, self._callers.unassigned) == 403
            assert await self._refusal(task_id, map_index, options, self._callers.reader) == 403
        await wait_before_answer()
        if task_id == "each":
            await self._answer_over_websocket(task_id, map_index, options)
        else:
            written = await answer_input(
                self._url,
                *self.key,
                task_id,
                options,
                map_index=map_index,
                params_input=FIELDS if request.get("params") else None,
                asked_at=request["asked_at"],
                token=self._callers.assigned,
            )
            assert (written["chosen_options"], written["by"]["name"]) == (options, "admin")
        if task_id != "again":
            assert await self._refusal(task_id, map_index, options, self._callers.assigned) == 409

    async def _answer_over_websocket(self, task_id: str, map_index: int, options: Sequence[str]) -> None:
        message = {"op": "answer", "id": "q", **self.key._asdict(), "task_id": task_id, "map_index": map_index}
        address = self._url.replace("http", "ws", 1) + "/api/v2/stream"
        async with connect(address, additional_headers=self._headers, proxy=None) as connection:
            await connection.send(json.dumps({**message, "chosen_options": options}))
            assert json.loads(await connection.recv()) == {"type": "ack", "op": "answer", "id": "q"}

    async def _refusal(self, task_id: str, map_index: int, options: Sequence[str], token: str) -> int:
        """Send an answer that must be refused, and return the status."""
        try:
            await answer_input(self._url, *self.key, task_id, options, map_index=map_index, token=token)
        except Refused as error:
            return error.status
        raise AssertionError(f"the answer {options} for {task_id} is not refused")


async def check_human_forms(forms: HumanForms, *, waiting: str) -> None:
    """Check a run with its answers, then a cleared task, and a deleted run.

    Args:
        forms: The run.
        waiting: State of a task that waits for an answer: `awaiting_input` from Airflow 3.3 on, `deferred` before.
    """
    frames = await forms.run()
    assert (frames[-1]["type"], frames[-1]["state"]) == ("end", "success"), frames[-10:]
    tries = {(*task, 1) for task in OPTIONS} | {("expiring", -1, 1), ("again", -1, 2)}
    requests, answered = _by_try(frames, "input"), _by_try(frames, "input_answered")
    assert requests.keys() == answered.keys() == tries
    assert all(answered[one]["asked_at"] == requests[one]["asked_at"] for one in tries)
    waits = {
        (frame["task_id"], frame["map_index"], frame["try_number"])
        for frame in frames
        if frame["type"] == "task" and frame["state"] == waiting
    }
    assert waits == tries

    for (task_id, map_index, try_number), answer in answered.items():
        options = OPTIONS.get((task_id, map_index), ["no"])
        assert answer["chosen_options"] == options, (task_id, map_index, try_number)
        assert ("by" in answer, answer.get("expired", False)) == ((task_id != "expiring"), (task_id == "expiring"))
    several = requests["several", -1, 1]
    assert (several["subject"], several["body"]) == ("Which colours?", "For the *front door*.")
    assert (several["options"], several["multiple"]) == (["red", "blue", "green"], True)
    assert several["params"]["count"] == {
        "value": 1,
        "description": "How many?",
        "schema": {"type": "integer", "minimum": 1},
    }
    assert answered["several", -1, 1]["params_input"] == FIELDS
    assert [requests["each", index, 1]["subject"] for index in (0, 1)] == ["The first?", "The second?"]
    assert {"id": "admin", "name": "admin"} in requests["assigned", -1, 1]["assignees"]
    assert requests["expiring", -1, 1]["defaults"] == ["no"]
    # Before Airflow 3.3, only the trigger has the deadline.
    assert [task for task, request in requests.items() if "expires_at" in request] == (
        [("expiring", -1, 1)] if waiting == "awaiting_input" else []
    )

    cleared = await forms.clear_and_answer("several")
    assert (cleared[-1]["type"], cleared[-1]["state"]) == ("end", "success"), cleared[-10:]
    assert _by_try(cleared, "input")["several", -1, 2]["subject"] == "Which colours?"
    assert _by_try(cleared, "input_answered")["several", -1, 2]["params_input"] == FIELDS
    assert await forms.delete_and_answer() == 404


def _by_try(frames: Sequence[Frame], kind: str) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return the last frame of a type for each try of a task instance."""
    return {
        (frame["task_id"], frame["map_index"], frame["try_number"]): frame for frame in frames if frame["type"] == kind
    }
