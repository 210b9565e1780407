from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from stream_server.http.agui.agent_messages import MAX_CONTENT_CHARACTERS
from stream_server.http.agui.requests import decode_run_input
from stream_server.http.agui.run_document import MAX_TASKS
from stream_server.http.agui.translator import AgUiTranslator
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import (
    AnyFrame,
    Close,
    End,
    Reset,
    Result,
    RunInfo,
    RunTransition,
    Snapshot,
    TaskInfo,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.input_frames import Input
from stream_server.protocol.output_frames import (
    Chunk,
    Progress,
    Report,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)
from support.builders import KEY, at

IDS = KEY._asdict()
QUESTION = {"id": "m1", "role": "user", "content": "Why?"}
EMPTY = Snapshot(
    **IDS,
    run=RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0),
    tasks=[],
    result_tasks=["answer"],
)
END = End(**IDS, state="success", outcome="result")


def build_translator(*messages: object, **members: object) -> AgUiTranslator:
    body = {"threadId": "t1", "runId": "r1", "messages": [QUESTION, *messages], **members}
    return AgUiTranslator(KEY, decode_run_input(json.dumps(body).encode()))


def translate(translator: AgUiTranslator, *frames: AnyFrame) -> list[dict[str, Any]]:
    data = b"".join([translator.translate(frame) for frame in frames])
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line]


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def move(state: str | None, task_id: str = "answer", **members: Any) -> TaskTransition:
    return TaskTransition(
        **IDS,
        seq=1,
        at=at(0),
        task_id=task_id,
        state=state,
        previous_state=None,
        try_number=1,
        **{"map_index": -1, **members},
    )


def output(index: int, try_number: int = 1) -> dict[str, Any]:
    return {
        **IDS, "seq": 1, "at": at(0), "task_id": "answer", "map_index": -1, "try_number": try_number, "index": index
    }  # fmt: skip


def chunk(text: str, index: int = 0, try_number: int = 1) -> Chunk:
    return Chunk(**output(index, try_number), value=raw(text))


def result(value: object) -> Result:
    return Result(**IDS, results={"answer": raw(value)})


def test_steps_are_open_once_and_closed_before_the_end() -> None:
    translator = build_translator()
    frames: list[AnyFrame] = [
        EMPTY,
        move("running"),
        move("deferred"),
        move("running"),
        move("running", "other", map_index=2),
    ]
    events = translate(translator, *frames, result("Be"), END)
    steps = [(event["type"], event["stepName"]) for event in events if event["type"].startswith("STEP")]
    assert steps == [
        ("STEP_STARTED", "answer"),
        ("STEP_STARTED", "other[2]"),
        ("STEP_FINISHED", "other[2]"),
        ("STEP_FINISHED", "answer"),
    ]
    assert events[-1]["type"] == "RUN_FINISHED"
    assert translator.translate(move("running")) == b""


def test_the_state_of_the_page_is_kept_and_names_are_escaped() -> None:
    translator = build_translator(state={"page": 1, "dag_run": "old"})
    (snapshot,) = translate(translator, EMPTY)
    assert snapshot["snapshot"]["page"] == 1
    assert snapshot["snapshot"]["dag_run"]["tasks"] == {}
    delta = translate(translator, move("running", "a~b/c"))[0]["delta"]
    assert delta[0]["path"] == "/dag_run/tasks/a~0b~1c"
    run = RunTransition(**IDS, seq=2, at=at(0), state="success", previous_state="running", clear_number=0)
    assert translate(translator, run) == [
        {"type": "STATE_DELTA", "delta": [{"op": "replace", "path": "/dag_run/state", "value": "success"}]}
    ]


@pytest.mark.parametrize("state", [None, [], "text", 5])
def test_a_state_that_is_no_object_is_replaced(state: object) -> None:
    (snapshot,) = translate(build_translator(state=state), EMPTY)
    assert list(snapshot["snapshot"]) == ["dag_run"]


def test_the_state_is_bounded() -> None:
    task: dict[str, Any] = {
        "task_id": "many",
        "try_number": 1,
        "state": "running",
        "start_date": None,
        "end_date": None,
    }
    tasks = [TaskInfo(**task, map_index=index) for index in range(MAX_TASKS + 5)]
    translator = build_translator()
    run = translate(translator, msgspec.structs.replace(EMPTY, tasks=tasks))[0]["snapshot"]["dag_run"]
    assert (len(run["tasks"]), run["omitted_tasks"]) == (MAX_TASKS, 5)
    (delta,) = translate(translator, move("success", "another"))
    assert delta["delta"] == [{"op": "replace", "path": "/dag_run/omitted_tasks", "value": 6}]
    assert translate(translator, move("failed", "another")) == []
    assert types_of(translate(translator, move("success", "many", map_index=MAX_TASKS))) == [
        "STATE_DELTA",
        "STEP_FINISHED",
    ]


def test_a_result_that_is_taken_back_is_not_sent() -> None:
    end = End(**IDS, state="success", outcome="none")
    events = translate(build_translator(), EMPTY, result("old"), Reset(**IDS, reason="cleared"), EMPTY, end)
    assert (events[-1]["type"], "result" in events[-1]) == ("RUN_FINISHED", False)


def test_one_of_several_results_is_named() -> None:
    outcome = Result(**IDS, results={"a": raw(1)}, references={"b": Reference(href="/x", bytes=5)})
    events = translate(build_translator(), EMPTY, chunk("Be"), outcome, END)
    assert events[-1]["result"] == {"a": 1}


def test_only_the_text_that_the_client_lacks_is_sent() -> None:
    translator = build_translator({"id": KEY.run_id, "role": "assistant", "content": "Be"})
    events = translate(translator, EMPTY, chunk("B"), chunk("e", 1), chunk("cause", 2), result("Because."), END)
    assert [event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT"] == ["cause", "."]
    assert types_of(events).count("TEXT_MESSAGE_START") == 1


def test_text_that_is_taken_back_is_left_out_of_a_snapshot_of_the_messages() -> None:
    translator = build_translator()
    reset = Reset(**IDS, reason="retried")
    events = translate(translator, EMPTY, chunk("Because"), reset, EMPTY, chunk("Bees", 0, 2), result("Bees"), END)
    at_snapshot = types_of(events).index("MESSAGES_SNAPSHOT")
    assert events[at_snapshot - 1]["type"] == "TEXT_MESSAGE_END"
    assert events[at_snapshot]["messages"] == [QUESTION]
    assert [event["delta"] for event in events[at_snapshot:] if "delta" in event] == ["Bees"]


def test_activities_replace_each_other_and_waiting_ends() -> None:
    translator = build_translator()
    frames: list[AnyFrame] = [
        Waiting(**IDS, reason="dag_paused"),
        move("running"),
        Progress(**output(0), value=Report(fraction=0.5, text="half")),
        Progress(**output(1), withheld=True),
    ]
    events = [event for event in translate(translator, EMPTY, *frames) if event["type"] == "ACTIVITY_SNAPSHOT"]
    assert [(event["activityType"], event["content"].get("text")) for event in events] == [
        ("waiting", "The DAG is paused"),
        ("waiting", None),
        ("progress", "half"),
    ]
    assert events[0]["messageId"] == events[1]["messageId"]


@pytest.mark.parametrize("hidden", [{"withheld": True}, {"reference": {"href": "/x", "bytes": 5}}])
def test_a_question_that_the_client_cannot_see_is_an_activity(hidden: dict[str, Any]) -> None:
    ids = {**IDS, "task_id": "ask", "map_index": -1, "try_number": 1, "asked_at": at(0)}
    asks = msgspec.convert({"type": "input", **ids, **hidden}, Input)
    translator = build_translator()
    (_, event) = translate(translator, EMPTY, asks)
    assert (event["activityType"], event["content"]["text"], translator.is_complete) == ("input", "ask: asks", False)


def agent_frames(try_number: int = 1) -> list[AnyFrame]:
    def place(index: int) -> dict[str, Any]:
        return output(index, try_number)

    return [
        Thinking(**place(0), value="They ask "),
        Thinking(**place(1), value="why. "),
        ToolCall(**place(2), value=ToolRequest(id="c1", name="look_up", arguments=raw({"of": "sky"}))),
        ToolResult(**place(3), value=ToolResponse(id="c1", result=raw("blue"))),
        Thinking(**place(4), value="So."),
        chunk("Because", 5, try_number),
        ToolCall(**place(6), value=ToolRequest(id="c2", name="look_up", arguments=raw({}))),
    ]


def test_thinking_and_tool_calls_are_messages_of_their_own() -> None:
    events = translate(build_translator(), EMPTY, *agent_frames(), result("Because"), END)
    assert types_of(events) == [
        "STATE_SNAPSHOT",
        "REASONING_START",
        "REASONING_MESSAGE_START",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_END",
        "REASONING_END",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TOOL_CALL_RESULT",
        "REASONING_START",
        "REASONING_MESSAGE_START",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_END",
        "REASONING_END",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TOOL_CALL_RESULT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert [event["content"] for event in events if event["type"] == "TOOL_CALL_RESULT"] == [
        '"blue"',
        "The tool has returned nothing",
    ]


def build_call(call: str, arguments: str) -> dict[str, Any]:
    call_id = f"{KEY.run_id}/answer/1/{call}"
    function = {"name": "look_up", "arguments": arguments}
    return {
        "id": call_id,
        "role": "assistant",
        "toolCalls": [{"id": call_id, "type": "function", "function": function}],
    }


@pytest.mark.parametrize("known", ["", '{"of":'])
def test_a_call_whose_arguments_were_cut_gets_the_rest(known: str) -> None:
    events = translate(build_translator(build_call("c1", known)), EMPTY, *agent_frames()[:3])
    (delta,) = [event["delta"] for event in events if event["type"] == "TOOL_CALL_ARGS"]
    assert known + delta == '{"of":"sky"}'


@pytest.mark.parametrize("calls", [5, [5], [{"id": 5}], [{"id": "c1", "function": {}}], [{"function": 5}]])
def test_calls_of_another_form_are_ignored(calls: object) -> None:
    message = {"id": f"{KEY.run_id}/answer/1/c1", "role": "assistant", "toolCalls": calls}
    events = translate(build_translator(message), EMPTY, *agent_frames()[:3])
    assert types_of(events).count("TOOL_CALL_START") == 1


def test_a_server_that_stops_leaves_calls_without_a_result_to_a_later_response() -> None:
    closing = Close(code=CloseCode.DRAINING, reason="stops", reconnect=True)
    events = translate(build_translator(), EMPTY, *agent_frames()[:3], closing)
    assert "TOOL_CALL_RESULT" not in types_of(events)
    assert types_of(events)[-1] == "RUN_ERROR"


def test_a_client_that_connects_again_gets_no_message_of_an_agent_twice() -> None:
    prefix = f"{KEY.run_id}/answer/1"
    known = [
        {"id": f"{prefix}/thinking-0", "role": "reasoning", "content": "They ask wh"},
        build_call("c1", '{"of":"sky"}'),
    ]
    events = translate(build_translator(*known), EMPTY, *agent_frames())
    assert [event["delta"] for event in events if event["type"] == "REASONING_MESSAGE_CONTENT"] == ["y. ", "So."]
    assert [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_START"] == [f"{prefix}/c2"]
    assert [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_RESULT"] == [f"{prefix}/c1"]


def test_calls_that_an_interrupt_leaves_open_get_their_results_later() -> None:
    ids = {**IDS, "task_id": "ask", "map_index": -1, "try_number": 1}
    asks = Input(**ids, asked_at=at(0), options=["Approve", "Reject"])
    call, found = agent_frames()[2:4]
    events = translate(build_translator(), EMPTY, call, asks)
    (provisional,) = [event for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert events[-1]["outcome"]["type"] == "interrupt"
    call_id = provisional["toolCallId"]
    known = [
        build_call("c1", '{"of":"sky"}'),
        {"id": provisional["messageId"], "role": "tool", "toolCallId": call_id, "content": provisional["content"]},
    ]
    later = translate(build_translator(*known), EMPTY, call, found, chunk("Because", 4))
    (snapshot,) = [event for event in later if event["type"] == "MESSAGES_SNAPSHOT"]
    assert [message["content"] for message in snapshot["messages"] if message["role"] == "tool"] == ['"blue"']
    assert not [event for event in later if event["type"].startswith("TOOL_CALL")]


@pytest.mark.parametrize("outcome", [{"result": raw("x" * 1_000_000)}, {"error": "x" * 1_000_000}])
def test_a_long_result_of_a_tool_is_cut(outcome: dict[str, Any]) -> None:
    call = agent_frames()[2]
    found = ToolResult(**output(3), value=ToolResponse(id="c1", **outcome))
    (event,) = [one for one in translate(build_translator(), EMPTY, call, found) if one["type"] == "TOOL_CALL_RESULT"]
    assert (len(event["content"]), event["content"][-1]) == (MAX_CONTENT_CHARACTERS, "…")


def think(index: int, *, task_id: str = "answer") -> Thinking:
    return Thinking(**{**output(index), "task_id": task_id}, value=f"w{index} ")


def apply_to_client(messages: list[dict[str, Any]], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the texts by id after some events, as a client has them."""
    texts = {message["id"]: message["content"] for message in messages}
    for event in events:
        if event["type"] == "MESSAGES_SNAPSHOT":
            texts = {message["id"]: message.get("content") for message in event["messages"] if message != QUESTION}
        elif event["type"] in {"REASONING_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT"}:
            texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
    return texts


@pytest.mark.parametrize("first", [1, 4, 8])
def test_thinking_whose_beginning_was_dropped_replaces_what_the_client_has(first: int) -> None:
    section = f"{KEY.run_id}/answer/1/thinking"
    known = [
        {"id": KEY.run_id, "role": "assistant", "content": "Be"},
        {"id": f"{section}-0", "role": "reasoning", "content": "".join([f"w{index} " for index in range(8)])},
    ]
    events = translate(build_translator(*known), EMPTY, *[think(index) for index in range(first, 10)])
    texts = apply_to_client(known, events)
    assert texts == {
        KEY.run_id: "Be",
        f"{section}-{first}": "".join([f"w{index} " for index in range(first, 10)]),
    }
    assert types_of(events).count("MESSAGES_SNAPSHOT") == 1


def test_what_comes_again_after_a_snapshot_of_the_messages_is_sent_again() -> None:
    translator = build_translator()
    plan = [think(0, task_id="plan"), think(1, task_id="plan")]
    before = translate(translator, EMPTY, chunk("Because"), *plan)
    texts = apply_to_client([], before)
    after = translate(translator, Reset(**IDS, reason="retried"), EMPTY, chunk("Bees", 0, 2), *plan)
    assert apply_to_client([{"id": one, "content": text} for one, text in texts.items()], after) == {
        KEY.run_id: "Bees",
        f"{KEY.run_id}/plan/1/thinking-0": "w0 w1 ",
    }


def test_a_snapshot_of_the_messages_keeps_those_of_other_runs() -> None:
    other = {"id": f"{KEY.run_id}0", "role": "assistant", "content": "Yes"}
    activity = {"id": "other/progress", "role": "activity", "content": {}}
    translator = build_translator(other, activity)
    events = translate(translator, EMPTY, chunk("B"), Reset(**IDS, reason="retried"), EMPTY, chunk("C", 0, 2))
    (snapshot,) = [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    assert snapshot["messages"] == [QUESTION, other]


def test_messages_of_an_agent_that_is_retried_are_taken_back_with_its_text() -> None:
    translator = build_translator()
    translate(translator, EMPTY, *agent_frames(), Reset(**IDS, reason="retried"), EMPTY)
    events = translate(translator, *agent_frames(2)[:5], chunk("Bees", 5, 2))
    (snapshot,) = [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    prefix = f"{KEY.run_id}/answer/2"
    assert [message["id"] for message in snapshot["messages"]] == [
        "m1",
        f"{prefix}/thinking-0",
        f"{prefix}/c1",
        f"{prefix}/c1/result",
        f"{prefix}/thinking-4",
    ]
    assert snapshot["messages"][1]["content"] == "They ask why. "
