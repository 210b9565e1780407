"""What chat clients learn of an AI agent in a task."""

from __future__ import annotations

from typing import Any

import msgspec

from stream_server.http.chat.agent_steps import Thought, ToolEnded, ToolStarted, describe_tool
from stream_server.http.chat.answer import Activity, Answer, Step
from stream_server.http.chat.answer_text import Append
from stream_server.protocol.frames import Reset
from stream_server.protocol.output_frames import (
    Chunk,
    OutputFrame,
    Progress,
    Report,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)
from support.builders import KEY, at


def output(kind: Any, index: int, value: object, *, task_id: str = "answer", try_number: int = 1) -> OutputFrame:
    ids = {**KEY._asdict(), "task_id": task_id, "map_index": -1, "seq": 1, "at": at(0), "try_number": try_number}
    made: OutputFrame = kind(**ids, index=index, value=value)
    return made


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


CALL = ToolRequest(id="c1", name="get_weather", arguments=raw({"city": "Paris"}))
STARTED = ToolStarted("answer/1/c1", "get_weather", CALL.arguments)


def apply(answer: Answer, *frames: Any) -> list[Step]:
    return [step for frame in frames for step in answer.apply(frame)]


def test_a_section_of_thinking_ends_with_other_output_but_progress() -> None:
    steps = apply(
        Answer(),
        output(Thinking, 0, "a"),
        output(Progress, 1, Report(text="half")),
        output(Thinking, 2, "b"),
        output(Thinking, 0, "other", task_id="plan"),
        output(Chunk, 3, raw("text")),
        output(Thinking, 4, "c"),
        output(ToolCall, 5, CALL),
        output(Thinking, 6, "d"),
    )
    assert steps == [
        Thought("answer/1/thinking-0", "a"),
        Activity("answer: half"),
        Thought("answer/1/thinking-0", "b"),
        Thought("plan/1/thinking-0", "other"),
        Append("text"),
        Thought("answer/1/thinking-4", "c"),
        STARTED,
        Activity("answer: calls get_weather"),
        Thought("answer/1/thinking-6", "d"),
    ]


def test_a_result_has_the_name_of_its_call() -> None:
    found = output(ToolResult, 1, ToolResponse(id="c1", result=raw(21)))
    failed = output(ToolResult, 2, ToolResponse(id="c2", error="No clock"))
    steps = apply(Answer(), output(ToolCall, 0, CALL), found, failed)
    assert steps[2:] == [
        ToolEnded("answer/1/c1", "get_weather", raw(21), None),
        ToolEnded("answer/1/c2", None, None, "No clock"),
    ]


def test_what_holds_after_a_retraction_is_no_news() -> None:
    answer = Answer(keeps_agent_steps=True)
    other = output(Thinking, 0, "other", task_id="plan")
    apply(answer, output(Thinking, 0, "first"), other)
    apply(answer, Reset(**KEY._asdict(), reason="retried"))
    assert answer.agent_steps == []
    assert apply(answer, other) == []
    assert apply(answer, output(Thinking, 0, "again", try_number=2)) == [Thought("answer/2/thinking-0", "again")]
    assert answer.agent_steps == [Thought("plan/1/thinking-0", "other"), Thought("answer/2/thinking-0", "again")]


def test_sections_continue_after_a_retraction() -> None:
    answer = Answer()
    frames = [
        output(Thinking, 0, "a", task_id="plan"),
        output(Chunk, 1, raw("text"), task_id="plan"),
        output(Thinking, 2, "b", task_id="plan"),
    ]
    before = apply(answer, *frames)
    apply(answer, Reset(**KEY._asdict(), reason="retried"), *frames)
    assert apply(answer, output(Thinking, 3, "c", task_id="plan")) == [Thought("plan/1/thinking-2", "c")]
    assert before[-1] == Thought("plan/1/thinking-2", "b")


def test_a_client_that_has_lost_its_steps_gets_those_that_come_again() -> None:
    answer = Answer(keeps_agent_steps=True)
    frames = [output(Thinking, 0, "a", task_id="plan"), output(Thinking, 1, "b", task_id="plan")]
    apply(answer, *frames)
    apply(answer, Reset(**KEY._asdict(), reason="retried"), frames[0])
    assert answer.restore_agent_steps() == [Thought("plan/1/thinking-0", "a")]
    assert apply(answer, frames[1]) == [Thought("plan/1/thinking-0", "b")]


def test_only_what_is_needed_is_kept_of_agents() -> None:
    found = output(ToolResult, 2, ToolResponse(id="c1", result=raw(21)))
    frames = [output(Thinking, 0, "a"), output(ToolCall, 1, CALL), found, output(Thinking, 3, "b")]
    frames += [output(Thinking, index, "c") for index in range(4, 9)]
    thinking = [Thought("answer/1/thinking-0", "a"), Thought("answer/1/thinking-3", "bccccc")]
    kept = {}
    for name, answer in (
        ("nothing", Answer()),
        ("thinking", Answer(keeps_thinking=True)),
        ("all", Answer(keeps_agent_steps=True)),
    ):
        apply(answer, *frames)
        kept[name] = answer.agent_steps
    ended = ToolEnded("answer/1/c1", "get_weather", raw(21), None)
    assert kept == {
        "nothing": [],
        "thinking": thinking,
        "all": [thinking[0], STARTED, ended, thinking[1]],
    }


def test_tool_calls_that_are_kept_are_bounded() -> None:
    answer = Answer(keeps_agent_steps=True)
    for index in range(0, 40, 2):
        request = ToolRequest(id=f"c{index}", name="get", arguments=raw({}))
        found = ToolResponse(id=f"c{index}", result=raw("x" * 100_000))
        apply(answer, output(ToolCall, index, request), output(ToolResult, index + 1, found))
    kept = [step.call_id for step in answer.agent_steps if not isinstance(step, Thought)]
    assert kept == [f"answer/1/c{index}" for index in range(20, 40, 2) for _ in range(2)]


def test_withheld_output_is_no_step() -> None:
    frames = [output(kind, index, msgspec.UNSET) for index, kind in enumerate((Thinking, ToolCall, ToolResult))]
    assert apply(Answer(), *frames) == []


def test_a_line_about_a_tool_is_short() -> None:
    assert describe_tool(STARTED) == 'get_weather {"city":"Paris"}'
    assert describe_tool(ToolEnded("c1", None, None, "No clock")) == "A tool failed: No clock"
    assert describe_tool(ToolEnded("c1", "get_weather", raw(21), None)) is None
    assert len(describe_tool(STARTED._replace(arguments=raw("x" * 1000))) or "") == 200
