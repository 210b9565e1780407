"""Thinking and tool calls of agents in OpenAI's API. `tests/integration/test_openai.py` reads them with its client."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import output_frames
from stream_server.http.openai.chunks import CompletionHead
from stream_server.http.openai.response_objects import ResponseHead
from stream_server.http.openai.response_translator import ResponseTranslator
from stream_server.http.openai.translator import CompletionTranslator
from stream_server.protocol.frames import AnyFrame, End, Result
from support.builders import at
from support.chat_runs import AGENT_ANSWER, AGENT_ITEMS

KEY = RunKey("chat", "r1")
BATCH = msgspec.json.encode({"try_number": 1, "index": 0, "items": AGENT_ITEMS}).decode()
MADE = Transition(1, 1, at(0), TransitionKind.XCOM, *KEY, "answer", -1)
FRAMES: list[AnyFrame] = [
    *output_frames(MADE._replace(xcom_key=OUTPUT_KEY, body=BATCH)),
    Result(**KEY._asdict(), results={"answer": msgspec.Raw(json.dumps(AGENT_ANSWER).encode())}),
    End(**KEY._asdict(), state="success", outcome="result"),
]


def events_of(translator: CompletionTranslator | ResponseTranslator) -> list[dict[str, Any]]:
    body = translator.start() + b"".join([translator.translate(frame) for frame in FRAMES])
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def deltas_of(*, shows_status: bool) -> list[dict[str, Any]]:
    head = CompletionHead("c1", 0, "chat")
    events = events_of(CompletionTranslator(head, includes_usage=False, shows_status=shows_status))
    return [choice["delta"] for event in events for choice in event.get("choices", [])]


def test_thinking_and_tool_calls_are_reasoning() -> None:
    deltas = deltas_of(shows_status=False)
    assert "".join([delta.get("content", "") for delta in deltas]) == f"Let me check.\n\n{AGENT_ANSWER}"
    assert "".join([delta.get("reasoning_content", "") for delta in deltas]) == (
        'They ask for the weather.\n\nget_weather {"city":"Paris"}\n\nget_time "{"\n\nget_time failed: No clock'
        "\n\n21 degrees."
    )


def test_open_webui_has_lines_for_tool_calls() -> None:
    deltas = deltas_of(shows_status=True)
    thinking = "".join([delta.get("reasoning_content", "") for delta in deltas])
    assert thinking == "They ask for the weather.\n\n21 degrees."


def test_a_complete_response_has_the_thinking() -> None:
    done = events_of(ResponseTranslator(ResponseHead(KEY, 0)))[-1]
    assert done["type"] == "response.completed"
    message, reasoning = done["response"]["output"]
    assert message["content"][0]["text"].endswith(AGENT_ANSWER)
    assert reasoning["type"] == "reasoning"
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "They ask for the weather.\n\n21 degrees."}]
