"""What a running task emits of an AI agent. `tests/airflow` tests the path through Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from stream_server.authoring import emit, emit_thinking, emit_tool_call, emit_tool_result, output, progress
from stream_server.authoring.output_buffer import MAX_ITEM_BYTES
from stream_server.domain.output_batch import decode_batch

Item = dict[str, Any]


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Item]]:
    """Items that a running task has pushed."""
    items: list[Item] = []

    def push(_task: object, batch: dict[str, Any]) -> None:
        decoded = decode_batch(json.dumps(batch))
        assert decoded is not None
        assert None not in decoded.items, "the server knows all items"
        items.extend(batch["items"])

    task = SimpleNamespace(id="try", try_number=1, task=SimpleNamespace(post_execute=None, on_failure_callback=None))
    monkeypatch.setattr(output, "_running_task", lambda: task)
    monkeypatch.setattr(output, "_push_xcom", push)
    yield items
    output.finish()


def test_items_of_an_agent(pushed: list[Item]) -> None:
    emit_thinking("They ask for the weather.")
    emit_thinking("")
    emit_tool_call("c1", "get_weather", {"city": "Paris"})
    emit_tool_result("c1", {"celsius": 21})
    emit_tool_call("c2", "get_time")
    emit_tool_result("c2", error="No clock")
    output.finish()
    assert pushed == [
        {"thinking": "They ask for the weather."},
        {"tool_call": {"id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}},
        {"tool_result": {"id": "c1", "result": {"celsius": 21}}},
        {"tool_call": {"id": "c2", "name": "get_time", "arguments": {}}},
        {"tool_result": {"id": "c2", "error": "No clock"}},
    ]


@pytest.mark.parametrize("character", ["x", "\0", "é", "\U0001f600"])
def test_large_values_are_shortened(pushed: list[Item], character: str) -> None:
    text = character * MAX_ITEM_BYTES
    emit_thinking(text)
    emit_tool_call("c1", "write", {"text": text})
    emit_tool_result("c1", text)
    emit_tool_result("c1", error=text)
    output.finish()
    thinking = "".join([item.get("thinking", "") for item in pushed])
    assert thinking == text.replace("\0", "\ufffd")
    call, result, failed = pushed[-3:]
    assert call["tool_call"]["truncated"] is True
    assert call["tool_call"]["arguments"].startswith('{"text": "')
    assert result["tool_result"]["truncated"] is True
    assert len(result["tool_result"]["result"]) > 4000
    assert text.replace("\0", "\ufffd").startswith(failed["tool_result"]["error"])


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, datetime(2026, 1, 1, tzinfo=timezone.utc), {1, 2}, b"x"])
def test_result_that_is_not_json_is_sent_as_text(pushed: list[Item], value: object) -> None:
    emit_tool_result("c1", value)
    output.finish()
    assert pushed == [{"tool_result": {"id": "c1", "result": str(value)}}]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnprintableError(Exception):
    __str__ = __repr__ = Unprintable.__str__


class Failing(dict[str, int]):
    def items(self) -> NoReturn:
        raise UnprintableError


def emit_invalid_values() -> None:
    emit_tool_call("c1", "get_weather", Unprintable())
    emit_tool_result("c1", [Unprintable()])
    emit_thinking(None)  # type: ignore[arg-type]
    emit_thinking(5)  # type: ignore[arg-type]
    progress("half")  # type: ignore[arg-type]
    emit(Failing(a=1))


def test_invalid_values_do_not_fail_the_task(pushed: list[Item], caplog: pytest.LogCaptureFixture) -> None:
    emit_invalid_values()
    emit_tool_result("c1", error=ValueError("No clock"))  # type: ignore[arg-type]
    output.finish()
    assert pushed == [{"tool_result": {"id": "c1", "error": "No clock"}}]
    reasons = [record.message.partition("read: ")[2].partition(":")[0].split()[0] for record in caplog.records]
    assert [reason.rpartition(".")[2] for reason in reasons] == [
        "RuntimeError",
        "TypeError",
        "ValueError",
        "UnprintableError",
    ], "one warning for each kind"


def test_outside_of_a_task_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    emit_thinking("text")
    emit_tool_call("c1", "get_weather")
    emit_tool_result("c1")
    emit_invalid_values()
    assert not caplog.records, "no value is read"


@pytest.mark.parametrize(
    ("stored", "first"),
    [
        ({"try_number": 1, "index": 3, "items": [{"chunk": "a"}, {"chunk": "b"}]}, 5),
        ({"try_number": 2, "index": 3, "items": [{"chunk": "a"}]}, 0),
        (None, 0),
        ("damaged", 0),
    ],
)
@pytest.mark.parametrize("resumed", [True, False])
def test_output_continues_when_a_try_is_resumed(
    monkeypatch: pytest.MonkeyPatch, stored: object, first: int, resumed: bool
) -> None:
    batches: list[dict[str, Any]] = []
    monkeypatch.setattr(output, "_push_xcom", lambda _task, batch: batches.append(batch))
    monkeypatch.setattr("airflow.sdk.bases.xcom.BaseXCom.get_one", lambda **_key: stored)
    task = SimpleNamespace(
        id="try",
        try_number=1,
        task=SimpleNamespace(post_execute=None, on_failure_callback=None),
        dag_id="d",
        task_id="t",
        run_id="r",
        map_index=-1,
        _ti_context_from_server=SimpleNamespace(next_method="resume" if resumed else None),
    )
    monkeypatch.setattr(output, "_running_task", lambda: task)
    output.emit("c")
    output.finish()
    assert batches == [{"try_number": 1, "index": first if resumed else 0, "items": [{"chunk": "c"}]}]
