"""An agent of Airflow's provider common.ai streams what it does, and waits for approval of a tool call."""

from __future__ import annotations

import asyncio
from typing import Any

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.client import answer_input
from stream_server.domain.run_state import RunKey
from support.airflow_version import HAS_AGENTS
from support.example_runs import wait_before_answer
from support.skipping import skip_or_fail
from support.streams import Events, sse, types
from support.waiting import eventually

if not HAS_AGENTS:
    skip_or_fail("the provider common.ai needs Python 3.11 or newer")

RUN_SECONDS = 120.0
OUTPUT = ("chunk", "thinking", "tool_call", "tool_result", "input", "input_answered")


async def test_agent_streams_across_an_approval(stack: DemoStack, airflow: AirflowRestClient) -> None:
    await asyncio.to_thread(eventually, lambda: airflow.get_dag("agent"), RUN_SECONDS, "agent is read")
    key = RunKey("agent", await asyncio.to_thread(airflow.trigger_run, "agent"))
    async with sse(stack.server.url, key, "?until=run", timeout=RUN_SECONDS) as events:
        frames = await until_waiting(events)
        await wait_before_answer()
        await answer_input(stack.server.url, *key, "answer", ["Approve"], token=airflow.token)
        frames += await events.rest(RUN_SECONDS)
    assert "reset" not in types(frames)
    output = [frame for frame in frames if frame["type"] in OUTPUT]
    others = [(frame["index"], frame["type"], frame["value"]) for frame in output if frame["task_id"] != "answer"]
    assert others == [(0, "chunk", "a"), (1, "thinking", "b"), (2, "chunk", "c")], "as other languages push it"
    emitted = [(frame["type"], frame.get("value")) for frame in output if frame["task_id"] == "answer"]
    mail = {"id": "c2", "name": "send_mail", "arguments": {"text": "21"}}
    assert emitted == [
        ("thinking", "They ask "),
        ("thinking", "for the weather."),
        ("tool_call", {"id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}),
        ("tool_result", {"id": "c1", "result": {"city": "Paris", "celsius": 21}}),
        ("chunk", "I send it."),
        ("tool_call", mail),
        ("input", None),
        ("input_answered", None),
        ("tool_call", mail),
        ("tool_result", {"id": "c2", "result": "sent: 21"}),
        ("chunk", "It is "),
        ("chunk", "warm."),
    ]
    indexes = [frame["index"] for frame in output if "index" in frame and frame["task_id"] == "answer"]
    assert indexes == [*range(len(indexes))]
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": "It is warm."}]


async def until_waiting(events: Events) -> list[dict[str, Any]]:
    """Return frames up to and including the one of the task that waits for the approval."""
    frames = []
    async for frame in events:
        frames.append(frame)
        if frame.get("state") == "awaiting_input":
            return frames
        assert frame["type"] not in {"failure", "end"}, frames
    raise AssertionError(frames)
