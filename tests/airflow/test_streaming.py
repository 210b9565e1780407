"""What running tasks say, on a real Airflow 3.3: from `yield` to the client's frame."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.streaming_forms import RETURNED, SAID, said
from support.streams import sse
from support.waiting import eventually

RUN_SECONDS = 120.0


async def trigger(airflow: AirflowRestClient, dag_id: str, conf: dict[str, Any] | None = None) -> RunKey:
    await asyncio.to_thread(eventually, lambda: airflow.get_dag(dag_id), RUN_SECONDS, f"{dag_id} is read")
    return RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id, conf or {}))


@pytest.mark.parametrize("dag_id", SAID)
async def test_a_form_is_heard_in_order_before_the_result(
    dag_id: str, stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, dag_id)
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    assert [frame["value"] for frame in said(frames)] == SAID[dag_id]
    assert [frame["index"] for frame in said(frames)] == list(range(len(SAID[dag_id])))
    assert [frame["type"] for frame in frames[-2:]] == ["result", "end"]
    assert list(frames[-2]["results"].values()) == [RETURNED[dag_id]]
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        late = await events.rest(RUN_SECONDS)
    assert said(late) == said(frames)


async def test_instances_of_a_mapped_task_are_heard_each_for_itself(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "stream_mapped")
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    heard = {index: "".join(one["value"] for one in said(frames) if one["map_index"] == index) for index in (0, 1)}
    assert heard == {0: "ab", 1: "cd"}
    assert frames[-2]["results"] == {"each": ["ab", "cd"]}


async def test_two_thousand_tokens_come_in_order_and_once_over_two_connections(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "stream_tokens", {"tokens": 2000, "per_second": 100})
    heard: list[int] = []
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        while len(heard) < 700:
            heard += [one["value"]["number"] for one in said([await events.next()])]
        cursor = next(one for one in reversed(events.ids) if one)
        place = len(events.ids) - 1 - events.ids[::-1].index(cursor)
    after = len(events.ids) - 1 - place
    assert heard == list(range(len(heard)))
    async with sse(stack.server_url, key, timeout=RUN_SECONDS, headers={"Last-Event-ID": cursor}) as events:
        frames = await events.rest(RUN_SECONDS)
    assert frames[0]["type"] == "resumed"
    rest = [one["value"]["number"] for one in said(frames)]
    assert rest[after:] == list(range(len(heard), 2000))
    assert frames[-1]["type"] == "end"


async def test_a_retry_after_half_takes_back_what_was_said(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "stream_retry")
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    resets = [place for place, frame in enumerate(frames) if frame["type"] == "reset"]
    whole = "".join(f"2.{number} " for number in range(10))
    last = frames[resets[-1] :] if resets else frames
    assert "".join(frame["value"] for frame in said(last)) == whole
    assert {frame["try_number"] for frame in said(last)} == {2}
    assert not resets or frames[resets[-1]]["reason"] == "retried"
    assert frames[-2]["results"] == {"half": whole}
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        assert "".join(frame["value"] for frame in said(await events.rest(RUN_SECONDS))) == whole


@pytest.mark.parametrize("dag_id", ["stream_fails", "stream_plain_fails"])
async def test_the_last_words_of_a_task_that_fails_are_heard(
    dag_id: str, stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, dag_id)
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    assert [frame["value"] for frame in said(frames)] == ["last ", "words"]
    assert [frame["type"] for frame in frames[-2:]] == ["failure", "end"]


async def test_what_was_taken_back_is_not_heard_where_the_task_is_marked_instead_of_tried_again(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "stream_given_up")
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        frames = [await asyncio.wait_for(events.next(), RUN_SECONDS)]
        while "wrong" not in [frame["value"] for frame in said(frames)] or frames[-1]["type"] != "reset":
            frames.append(await events.next())
        path = f"/dags/{key.dag_id}/dagRuns/{key.run_id}/taskInstances/never"
        answer = await asyncio.to_thread(airflow.request, "PATCH", path, json={"new_state": "success"})
        assert answer.status_code == 200, answer.text
        assert said(await events.rest(RUN_SECONDS)) == []
    async with sse(stack.server_url, key, "?until=run", timeout=RUN_SECONDS) as events:
        assert said(await events.rest(RUN_SECONDS)) == []


async def test_the_chat_answers_word_by_word(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "chat_stream", {"message": "What is a pool?", "history": []})
    async with sse(stack.server_url, key, timeout=RUN_SECONDS) as events:
        frames = await events.rest(RUN_SECONDS)
    text = "".join(frame["value"] for frame in frames if frame["type"] == "chunk")
    assert text.startswith("A pool limits")
    assert frames[-2]["results"] == {"answer": text}
    steps = [frame["value"]["text"] for frame in frames if frame["type"] == "progress"]
    assert steps[:2] == ["searching", "writing"]
