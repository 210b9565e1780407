"""The capability for agents of pydantic-ai, with models that need no network."""

# pydantic-ai may be missing

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.skipping import skip_or_fail

try:
    import pydantic_ai
except ImportError:
    skip_or_fail("pydantic-ai is not installed, which needs Python 3.11 or newer: run `make .venv/.dev`")

import pydantic
from pydantic_ai import Agent, BinaryContent, DeferredToolRequests, DeferredToolResults, ModelRetry, Tool, ToolDenied
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartStartEvent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

from stream_server.authoring import output
from stream_server.authoring import pydantic_ai as capability_module
from stream_server.authoring.output_buffer import OutputBuffer
from stream_server.authoring.pydantic_ai import StreamOutput
from stream_server.authoring.result_marks import is_marked
from stream_server.domain.output_batch import OutputItem, _item_decoder

DOCS = Path(__file__).resolve().parents[3] / "docs" / "agents.md"

Item = dict[str, Any]
Delta = str | dict[int, Any]


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    """Items that the running task has emitted."""
    items: list[Item] = []
    task = SimpleNamespace(id="try", try_number=1, task=SimpleNamespace(post_execute=None, on_failure_callback=None))
    monkeypatch.setattr(output, "_running_task", lambda: task)
    monkeypatch.setattr(output, "_current", None)
    monkeypatch.setattr(OutputBuffer, "add", lambda _buffer, item: items.append(item))
    return items


def model_of(*responses: list[Delta]) -> FunctionModel:
    """Return a model that gives these responses in turn, piece by piece."""
    remaining = list(responses)

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        for delta in remaining.pop(0):
            yield delta

    return FunctionModel(stream_function=stream)


def thinking(text: str, part: int = 0) -> Delta:
    return {part: DeltaThinkingPart(content=text)}


def call(name: str, arguments: str, call_id: str = "c1", part: int = 1) -> Delta:
    return {part: DeltaToolCall(name=name, json_args=arguments, tool_call_id=call_id)}


def get_weather(city: str) -> dict[str, Any]:
    return {"city": city, "celsius": 21}


async def ask(
    model: object, *tools: Callable[..., Any], capability: StreamOutput | None = None, **arguments: object
) -> object:
    agent = Agent(model, tools=tools, capabilities=[capability or StreamOutput()], **arguments)
    return (await agent.run("How is the weather?")).output


async def test_text_thinking_and_tool_calls_are_emitted_in_order(emitted: list[Item]) -> None:
    first = [
        thinking("They ask "),
        thinking("for the weather."),
        "Let me look.",
        call("get_weather", '{"city": "Paris"}'),
    ]
    answer = await ask(model_of(first, [thinking("21 degrees."), "It is ", "warm."]), get_weather)
    assert answer == "It is warm."
    assert emitted == [
        {"thinking": "They ask "},
        {"thinking": "for the weather."},
        {"chunk": "Let me look."},
        {"tool_call": {"id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}},
        {"tool_result": {"id": "c1", "result": {"city": "Paris", "celsius": 21}}},
        {"thinking": "21 degrees."},
        {"chunk": "\n\nIt is "},
        {"chunk": "warm."},
    ]


async def test_sections_of_thinking_are_separated(emitted: list[Item]) -> None:
    await ask(model_of([thinking("One.", 0), thinking("Two.", 1), "Done."]))
    assert emitted == [{"thinking": "One."}, {"thinking": "\n\nTwo."}, {"chunk": "Done."}]


async def test_runs_of_one_agent_share_nothing(emitted: list[Item]) -> None:
    capability = StreamOutput()
    await ask(model_of(["One."]), capability=capability)
    await ask(model_of(["Two."]), capability=capability)
    assert emitted == [{"chunk": "One."}, {"chunk": "Two."}]


async def test_what_is_switched_off_is_not_emitted(emitted: list[Item]) -> None:
    model = model_of([thinking("Hm."), call("get_weather", '{"city": "Paris"}')], ["It is warm."])
    await ask(model, get_weather, capability=StreamOutput(thinking=False, tools=False))
    assert emitted == [{"chunk": "It is warm."}]


async def test_a_call_that_is_to_be_repeated_has_an_error(emitted: list[Item]) -> None:
    def get_weather(city: str) -> str:
        if city == "Pari":
            raise ModelRetry("No such city")
        return "warm"

    model = model_of(
        [call("get_weather", '{"city": "Pari"}', "c1")],
        [call("get_weather", '{"town": "Paris"}', "c2")],
        [call("get_weather", '{"city": "Paris"}', "c3")],
        ["Warm."],
    )
    await ask(model, get_weather, retries=5)
    results = [item["tool_result"] for item in emitted if "tool_result" in item]
    assert results[0] == {"id": "c1", "error": "No such city"}
    assert "Field required" in results[1]["error"]
    assert results[2] == {"id": "c3", "result": "warm"}


class Weather(pydantic.BaseModel):
    celsius: float


async def test_results_are_converted_to_json(emitted: list[Item]) -> None:
    def measure() -> Any:
        return [Weather(celsius=float("nan")), b"\xff"]

    def draw() -> BinaryContent:
        return BinaryContent(b"x" * 100_000, media_type="image/png")

    calls = [call("measure", "{}", "c1", 1), call("draw", "", "c2", 2), call("measure", "[", "c3", 3)]
    await ask(model_of(calls, ["Done."]), measure, draw)
    for item in emitted:
        assert isinstance(_item_decoder.decode(json.dumps(item)), OutputItem)
    results = {item["tool_result"]["id"]: item["tool_result"] for item in emitted if "tool_result" in item}
    assert results["c1"]["result"][0] == {"celsius": None}
    assert results["c2"]["truncated"] is True
    arguments = [item["tool_call"]["arguments"] for item in emitted if "tool_call" in item]
    assert arguments == [{}, {}, "["]


async def test_what_cannot_be_emitted_does_not_end_the_agent(
    emitted: list[Item], caplog: pytest.LogCaptureFixture
) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    async def stream() -> AsyncIterator[AgentStreamEvent]:
        yield FunctionToolCallEvent(ToolCallPart("fetch", "[" * 100_000, "c1"))
        yield FunctionToolResultEvent(ToolReturnPart("fetch", nested, "c1"))
        yield FunctionToolResultEvent(ToolReturnPart("fetch", nested, "c2"))
        yield PartStartEvent(index=0, part=TextPart("It is warm."))

    capability = await StreamOutput().for_run(None)
    assert len([event async for event in capability.wrap_run_event_stream(None, stream=stream())]) == 4
    assert [list(item) for item in emitted] == [["tool_call"], ["chunk"]]
    assert emitted[0]["tool_call"]["arguments"].startswith("[[[")
    (record,) = caplog.records
    assert record.message.startswith("A value is not streamed, because it can't be read: RecursionError: ")


async def test_tools_of_the_provider_are_emitted(emitted: list[Item]) -> None:
    searched = NativeToolCallPart(tool_name="web_search", args={"query": "weather"}, tool_call_id="n1")
    found = NativeToolReturnPart(tool_name="web_search", content=["warm"], tool_call_id="n1")
    await ask(model_of([{0: searched}, {1: found}, "Warm."]))
    assert emitted == [
        {"tool_call": {"id": "n1", "name": "web_search", "arguments": {"query": "weather"}}},
        {"tool_result": {"id": "n1", "result": ["warm"]}},
        {"chunk": "Warm."},
    ]


async def test_structured_output_is_not_text(emitted: list[Item]) -> None:
    answer = await ask(TestModel(), get_weather, output_type=Weather)
    assert isinstance(answer, Weather)
    assert [*emitted[0], *emitted[1]] == ["tool_call", "tool_result"]
    assert len(emitted) == 2


async def test_a_call_that_waits_for_approval_gets_its_result_later(emitted: list[Item]) -> None:
    def delete() -> None: ...

    model = model_of([call("delete", "{}")], ["I may not."])
    tools = [Tool(delete, requires_approval=True)]
    agent = Agent(model, tools=tools, capabilities=[StreamOutput()], output_type=[str, DeferredToolRequests])
    first = await agent.run("Delete it")
    assert emitted == [{"tool_call": {"id": "c1", "name": "delete", "arguments": {}}}]
    denied = DeferredToolResults(approvals={"c1": ToolDenied("It is kept")})
    await agent.run(message_history=first.all_messages(), deferred_tool_results=denied)
    assert emitted[-2:] == [{"tool_result": {"id": "c1", "error": "It is kept"}}, {"chunk": "I may not."}]


async def test_an_older_airflow_streams_nothing(
    emitted: list[Item], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capability_module, "airflow_version", "3.1.8")
    assert await ask(TestModel(custom_output_text="Warm.")) == "Warm."
    assert not emitted
    assert "needs Airflow 3.2" in caplog.text


def test_a_mapped_task_stores_the_same_text_each_time() -> None:
    assert repr(StreamOutput(tools=False)) == repr(StreamOutput(tools=False))
    assert "0x" not in repr(StreamOutput())
    assert StreamOutput.get_serialization_name() is None
    assert pydantic_ai.__version__


def test_without_pydantic_ai_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_ai.capabilities", None)
    spec = importlib.util.spec_from_file_location("without_pydantic_ai", str(capability_module.__file__))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match="pip install apache-airflow-providers-common-ai"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_documented_example_is_a_dag_file() -> None:
    (example,) = re.findall(r"```python\n(.+?)\n```", DOCS.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(DOCS), "exec"), namespace)
    dag = namespace["weather_agent"]()
    dag.validate()
    assert [(task.task_id, is_marked(task)) for task in dag.tasks] == [("answer", True)]
