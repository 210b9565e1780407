"""Human-in-the-loop operators, on a real Airflow 3.3."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import asyncpg
import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.client import Refused, answer_input
from stream_server.domain.run_state import RunKey
from support.example_runs import wait_before_answer
from support.streams import Events, Frame, sse, states, types
from support.waiting import eventually

RUN_SECONDS = 120.0
WORKERS = 2
DAG_ID = "human_input"


@pytest.fixture(scope="module")
def server(stack: DemoStack) -> Iterator[StreamServerProcess]:
    """A server with several worker processes."""
    server = stack.add_server(options=["--workers", str(WORKERS)])
    server.start()
    yield server
    server.stop()


def workers(server: StreamServerProcess) -> set[int]:
    return {child.pid for child in psutil.Process(server.child.pid).children()}


@asynccontextmanager
async def all_runs(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=RUN_SECONDS) as client,
        client.stream("GET", f"/api/v2/dags/{DAG_ID}/stream", headers=headers) as response,
    ):
        yield Events(response)


async def until_state(events: Events, task_id: str, state: str) -> list[Frame]:
    """Return frames up to and including the one with a state of a task."""
    frames: list[Frame] = []
    with anyio.move_on_after(RUN_SECONDS):
        async for frame in events:
            frames.append(frame)
            if (frame.get("task_id"), frame.get("state")) == (task_id, state):
                return frames
    raise AssertionError(f"{task_id} is not {state}; the last frames are {frames[-5:]}")


@pytest.mark.parametrize("way", ["airflow", pytest.param("http", marks=pytest.mark.core), "websocket"])
async def test_streams_continue_across_a_human_response(
    server: StreamServerProcess, stack: DemoStack, airflow: AirflowRestClient, way: str
) -> None:
    await asyncio.to_thread(eventually, lambda: airflow.get_dag(DAG_ID), RUN_SECONDS, f"{DAG_ID} is read")
    before = workers(server)
    assert len(before) == WORKERS
    async with all_runs(server.url) as firehose:
        await firehose.next()
        cursor = firehose.ids[-1] or ""
        key = RunKey(DAG_ID, await asyncio.to_thread(airflow.trigger_run, DAG_ID))
        async with sse(server.url, key, "?until=run", timeout=RUN_SECONDS) as events:
            frames = await until_state(events, "approve", "awaiting_input")
            await wait_before_answer()
            await approve(way, server.url, airflow, key)
            frames += await events.rest(RUN_SECONDS)
        received = await until_state(firehose, "publish", "success")
    assert "reset" not in types(frames)
    question, answer = (
        next(frame for frame in frames if frame["type"] == kind) for kind in ("input", "input_answered")
    )
    assert (question["subject"], question["options"]) == ("Publish it?", ["Approve", "Reject"])
    assert (answer["asked_at"], answer["chosen_options"]) == (question["asked_at"], ["Approve"])
    assert answer["by"]["name"] == "admin"
    assert states(frames, "publish")[-1] == "success"
    assert frames[-1]["outcome"] == "result"
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"publish": "published"}]
    assert await input_rows(stack) >= 2, "the request and its answer"
    async with all_runs(server.url, {"Last-Event-ID": cursor}) as firehose:
        replayed = await until_state(firehose, "publish", "success")
    assert replayed[0]["type"] == "resumed"
    assert transitions(replayed) == transitions(received)
    assert workers(server) == before


async def approve(way: str, url: str, airflow: AirflowRestClient, key: RunKey) -> None:
    if way == "airflow":
        path = f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances/approve/-1/hitlDetails"
        response = await asyncio.to_thread(airflow.request, "PATCH", path, json={"chosen_options": ["Approve"]})
        response.raise_for_status()
    elif way == "http":
        written = await answer_input(url, *key, "approve", ["Approve"], token=airflow.token)
        assert written["chosen_options"] == ["Approve"]
        with pytest.raises(Refused) as refused:
            await answer_input(url, *key, "approve", ["Reject"], token=airflow.token)
        assert refused.value.status == 409
    else:
        message = {"op": "answer", "id": "q", **key._asdict(), "task_id": "approve", "chosen_options": ["Approve"]}
        headers = {"Authorization": f"Bearer {airflow.token}"}
        address = url.replace("http", "ws", 1) + "/api/v2/stream"
        async with connect(address, additional_headers=headers, proxy=None) as connection:
            replies = []
            for _ in range(2):
                await connection.send(json.dumps(message))
                replies.append(json.loads(await connection.recv()))
        assert replies[0] == {"type": "ack", "op": "answer", "id": "q"}
        assert (replies[1]["type"], replies[1]["status"]) == ("error", 409)


async def input_rows(stack: DemoStack) -> int:
    connection = await asyncpg.connect(stack.database_url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM stream_server.journal WHERE kind = 'input'"))
    finally:
        await connection.close()


def transitions(frames: list[Frame]) -> list[int]:
    return [frame["seq"] for frame in frames if frame["type"] in {"task", "run"}]
