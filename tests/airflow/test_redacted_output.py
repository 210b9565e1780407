"""Output of tasks of a real Airflow is sent to callers that can read XComs, also in streams of many runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.domain.run_state import RunKey
from support.airflow_callers import DeniedPermissions, bearer_header, make_token
from support.permission_comparison import SECONDS
from support.streams import Frame
from support.waiting import eventually, eventually_answered, eventually_async

WITH_OUTPUT, OTHER = "stream_text", "stream_plain"
OUTPUT = "type=chunk&type=progress"


async def run(airflow: AirflowRestClient, dag_id: str) -> RunKey:
    """Trigger a run, and wait for its end."""
    await asyncio.to_thread(eventually, lambda: airflow.get_dag(dag_id), SECONDS, f"{dag_id} is read")
    key = RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id))
    assert await asyncio.to_thread(airflow.wait_until_finished, *key) == "success"
    return key


@asynccontextmanager
async def follow_stream(server: StreamServerProcess, user: str, path: str) -> AsyncIterator[list[Frame]]:
    """Follow a stream as a user; yields the list of frames received so far."""
    frames: list[Frame] = []
    started = asyncio.Event()

    async def read() -> None:
        headers = {**bearer_header(make_token(user, "admin")), "Accept": "application/x-ndjson"}
        async with (
            httpx.AsyncClient(base_url=server.url, headers=headers, timeout=2 * SECONDS) as client,
            client.stream("GET", f"/api/v2{path}") as response,
        ):
            async for line in response.aiter_lines():
                frames.append(json.loads(line))
                started.set()

    task = asyncio.create_task(read())
    try:
        await asyncio.wait_for(started.wait(), SECONDS)
        yield frames
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def output_of(frames: list[Frame], dag_id: str = WITH_OUTPUT) -> list[object]:
    """Return the output of the tasks of a DAG; `withheld` for values that are not sent."""
    output = [one for one in frames if one["type"] in {"chunk", "progress"} and one["dag_id"] == dag_id]
    return ["withheld" if one.get("withheld") else one["value"] for one in output]


@pytest.mark.parametrize("path", [f"/stream?{OUTPUT}", f"/dags/{WITH_OUTPUT}/stream?{OUTPUT}"], ids=["all", "DAG"])
async def test_values_are_sent_to_callers_that_can_read_xcoms(
    auth_server: StreamServerProcess, airflow: AirflowRestClient, denied: DeniedPermissions, path: str
) -> None:
    denied.deny_only(no_xcoms=["XCOM"], not_these=[f"XCOM:{WITH_OUTPUT}"])
    async with (
        follow_stream(auth_server, "all", path) as all_,
        follow_stream(auth_server, "no_xcoms", path) as none,
        follow_stream(auth_server, "not_these", path) as others,
    ):
        await run(airflow, WITH_OUTPUT)
        await eventually_async(
            lambda: len(output_of(all_)) == len(output_of(none)) == len(output_of(others)) > 1, SECONDS
        )
        assert output_of(all_)[0] == {"fraction": 0.5, "text": "writing"}
        assert "".join(map(str, output_of(all_)[1:])) == "Because"
        assert set(map(str, output_of(none) + output_of(others))) == {"withheld"}
        if not path.startswith("/dags"):
            await run(airflow, OTHER)
            await eventually_async(lambda: "word" in output_of(others, OTHER), SECONDS)


async def test_runs_of_a_dag_are_not_sent_after_its_permission_is_revoked(
    auth_server: StreamServerProcess, airflow: AirflowRestClient, denied: DeniedPermissions
) -> None:
    async with follow_stream(auth_server, "revoked", "/stream?type=run") as frames:

        def has_succeeded(key: RunKey) -> bool:
            return any((one.get("run_id"), one.get("state")) == (key.run_id, "success") for one in frames)

        before = await run(airflow, WITH_OUTPUT)
        await eventually_async(lambda: has_succeeded(before), SECONDS)
        denied.deny_only(revoked=[f"RUN:{WITH_OUTPUT}"])

        async def is_delivered() -> bool:
            one, other = await run(airflow, WITH_OUTPUT), await run(airflow, OTHER)
            await eventually_async(lambda: has_succeeded(other), SECONDS)
            return has_succeeded(one)

        async def is_not_delivered() -> bool:
            return not await is_delivered()

        # Airflow's answer is cached for a moment, in which a run can end.
        await eventually_answered(is_not_delivered, SECONDS)
        denied.deny_only()
        await eventually_answered(is_delivered, SECONDS)
