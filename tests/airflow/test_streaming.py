"""Output of running tasks on a real Airflow 3.3, from `yield` to the client's frame."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.streaming_forms import EXPECTED_OUTPUT, EXPECTED_RESULTS, output_values
from support.streams import Frame, sse
from support.waiting import eventually

RUN_SECONDS = 120.0
FAILING = ("stream_fails", "stream_plain_fails")
WATCHED = (*EXPECTED_OUTPUT, "stream_mapped", *FAILING)
"""DAGs whose runs end on their own, and soon."""


async def trigger(airflow: AirflowRestClient, dag_id: str, conf: dict[str, Any] | None = None) -> RunKey:
    await asyncio.to_thread(eventually, lambda: airflow.get_dag(dag_id), RUN_SECONDS, f"{dag_id} is read")
    return RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id, conf or {}))


@pytest.fixture(scope="module")
def watched_runs(stack: DemoStack, airflow: AirflowRestClient) -> dict[str, tuple[RunKey, list[Frame]]]:
    """Runs of several DAGs at the same time, each with the frames of a client that connected when it was triggered."""

    async def watch(dag_id: str) -> tuple[RunKey, list[Frame]]:
        key = await trigger(airflow, dag_id)
        async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
            return key, await events.rest(RUN_SECONDS)

    async def watch_all() -> dict[str, tuple[RunKey, list[Frame]]]:
        return dict(zip(WATCHED, await asyncio.gather(*map(watch, WATCHED)), strict=True))

    return asyncio.run(watch_all())


@pytest.mark.parametrize("dag_id", EXPECTED_OUTPUT)
async def test_output_of_each_form_arrives_in_order_before_the_result(
    dag_id: str, stack: DemoStack, watched_runs: dict[str, tuple[RunKey, list[Frame]]]
) -> None:
    key, frames = watched_runs[dag_id]
    assert [frame["value"] for frame in output_values(frames)] == EXPECTED_OUTPUT[dag_id]
    assert [frame["index"] for frame in output_values(frames)] == list(range(len(EXPECTED_OUTPUT[dag_id])))
    assert [frame["type"] for frame in frames[-2:]] == ["result", "end"]
    assert list(frames[-2]["results"].values()) == [EXPECTED_RESULTS[dag_id]]
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        late = await events.rest(RUN_SECONDS)
    assert output_values(late) == output_values(frames)


async def test_output_of_mapped_instances_is_separate(
    watched_runs: dict[str, tuple[RunKey, list[Frame]]],
) -> None:
    _, frames = watched_runs["stream_mapped"]
    received = {
        index: "".join(one["value"] for one in output_values(frames) if one["map_index"] == index) for index in (0, 1)
    }
    assert received == {0: "ab", 1: "cd"}
    assert frames[-2]["results"] == {"each": ["ab", "cd"]}


async def test_two_thousand_tokens_arrive_once_and_in_order_over_two_connections(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "stream_tokens", {"tokens": 2000, "per_second": 200})
    received: list[int] = []
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        while len(received) < 700:
            received += [one["value"]["number"] for one in output_values([await events.next()])]
        cursor = next(one for one in reversed(events.ids) if one)
        position = len(events.ids) - 1 - events.ids[::-1].index(cursor)
    after = len(events.ids) - 1 - position
    assert received == list(range(len(received)))
    async with sse(stack.server_url, key, timeout=RUN_SECONDS, headers={"Last-Event-ID": cursor}) as events:
        frames = await events.rest(RUN_SECONDS)
    assert frames[0]["type"] == "resumed"
    rest = [one["value"]["number"] for one in output_values(frames)]
    assert rest[after:] == list(range(len(received), 2000))
    assert frames[-1]["type"] == "end"


@pytest.mark.core
async def test_a_retry_retracts_the_output_of_the_failed_try(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "stream_retry")
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    resets = [position for position, frame in enumerate(frames) if frame["type"] == "reset"]
    whole = "".join(f"2.{number} " for number in range(10))
    last = frames[resets[-1] :] if resets else frames
    assert "".join(frame["value"] for frame in output_values(last)) == whole
    assert {frame["try_number"] for frame in output_values(last)} == {2}
    assert not resets or frames[resets[-1]]["reason"] == "retried"
    assert frames[-2]["results"] == {"half": whole}
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        assert "".join(frame["value"] for frame in output_values(await events.rest(RUN_SECONDS))) == whole


@pytest.mark.parametrize("dag_id", FAILING)
async def test_the_last_output_of_a_failing_task_arrives(
    dag_id: str, watched_runs: dict[str, tuple[RunKey, list[Frame]]]
) -> None:
    _, frames = watched_runs[dag_id]
    assert [frame["value"] for frame in output_values(frames)] == ["last ", "words"]
    assert [frame["type"] for frame in frames[-2:]] == ["failure", "end"]


async def test_retracted_output_is_not_sent_when_a_task_is_marked_instead_of_retried(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "stream_given_up")
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        frames = [await asyncio.wait_for(events.next(), RUN_SECONDS)]
        while "wrong" not in [frame["value"] for frame in output_values(frames)] or frames[-1]["type"] != "reset":
            frames.append(await events.next())
        path = f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances/never"
        answer = await asyncio.to_thread(airflow.request, "PATCH", path, json={"new_state": "success"})
        assert answer.status_code == 200, answer.text
        assert output_values(await events.rest(RUN_SECONDS)) == []
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        assert output_values(await events.rest(RUN_SECONDS)) == []


async def test_the_chat_example_streams_word_by_word(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "chat_stream", {"message": "What is a pool?", "history": []})
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    text = "".join(frame["value"] for frame in frames if frame["type"] == "chunk")
    assert text.startswith("A pool limits")
    assert frames[-2]["results"] == {"answer": text}
    steps = [frame["value"]["text"] for frame in frames if frame["type"] == "progress"]
    assert steps[:2] == ["searching", "writing"]
