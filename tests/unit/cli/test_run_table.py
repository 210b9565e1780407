from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec import Raw
from msgspec.structs import replace
from rich.console import Console

from stream_server.cli.run_table import RunTable, describe_frame
from stream_server.hub.redaction import redact
from stream_server.protocol.examples import FRAMES
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import (
    AnyFrame,
    Close,
    End,
    Failure,
    Ping,
    Reset,
    Result,
    RunInfo,
    RunTransition,
    Snapshot,
    TaskInfo,
    TaskTransition,
)
from stream_server.protocol.output_frames import Chunk, Progress, Report, Thinking, ToolCall, ToolResponse, ToolResult
from support.builders import KEY, at

RUN = KEY._asdict()


def snapshot(*tasks: TaskInfo, counts: dict[str, dict[str, int]] | None = None) -> Snapshot:
    run = RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0)
    return Snapshot(**RUN, run=run, tasks=list(tasks), result_tasks=[], counts=counts or {})


def info(task_id: str, state: str | None, map_index: int = -1, *, seconds: int | None = None) -> TaskInfo:
    start = None if seconds is None else at(0)
    end = None if start is None or seconds is None else start + timedelta(seconds=seconds)
    return TaskInfo(task_id=task_id, map_index=map_index, try_number=1, state=state, start_date=start, end_date=end)


def transition(task_id: str, state: str | None, map_index: int = -1, try_number: int = 1) -> TaskTransition:
    return TaskTransition(
        **{**RUN, "seq": 1, "at": at(0), "task_id": task_id, "map_index": map_index, "try_number": try_number},
        state=state,
        previous_state=None,
    )


def chunk(index: int, value: str | None, map_index: int = -1) -> Chunk:
    """A chunk with JSON text; `None` for a chunk without permission to read it."""
    fields = {
        **RUN,
        "seq": 1,
        "at": at(0),
        "task_id": "answer",
        "map_index": map_index,
        "try_number": 1,
        "index": index,
    }
    if value is None:
        return Chunk(**fields, withheld=True)
    return Chunk(**fields, value=Raw(value.encode()))


def progress(fraction: float | None, text: str | None = None) -> Progress:
    fields = {**RUN, "seq": 1, "at": at(0), "task_id": "answer", "map_index": -1, "try_number": 1, "index": 0}
    return Progress(**fields, value=Report(fraction=fraction, text=text))


def render(*frames: AnyFrame) -> str:
    """Return the table as text after some frames."""
    table = RunTable(*KEY)
    for frame in frames:
        table.update(frame)
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if f" {name} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_table_has_the_run_and_its_tasks() -> None:
    text = render(snapshot(info("ask", "success", seconds=3), info("answer", None)))
    assert "ask_llm/manual__2026-01-01T00:00:00+00:00" in "".join(text.split())
    assert "Run: running" in text
    assert row(text, "ask") == ["ask", "success", "1", "3.0"]
    assert row(text, "answer") == ["answer", "no_status", "1", ""]


@pytest.mark.parametrize("value", ['"a\\u001b[2J"', '["a\x9b"]'])
def test_control_characters_of_output_do_not_reach_the_terminal(value: str) -> None:
    frame = chunk(0, value)
    for text in (describe_frame(frame), render(snapshot(info("answer", "running")), frame)):
        assert "a\ufffd" in text
        assert not {"\x1b", "\x9b"} & set(text)


def test_control_characters_of_progress_do_not_reach_the_terminal() -> None:
    frame = progress(0.5, "a\x1b[2J")
    for text in (describe_frame(frame), render(snapshot(info("answer", "running")), frame)):
        assert "a\ufffd" in text
        assert "\x1b" not in text


def test_transition_updates_its_row() -> None:
    text = render(snapshot(info("ask", "running")), transition("ask", "up_for_retry", try_number=2))
    assert row(text, "ask")[:3] == ["ask", "up_for_retry", "2"]


def test_running_task_has_a_duration() -> None:
    assert row(render(snapshot(info("ask", None)), transition("ask", "running")), "ask")[3] == "0.0"


def test_expanded_instances_replace_the_mapped_task() -> None:
    text = render(snapshot(info("square", None)), transition("square", None, 0), transition("square", "queued", 1))
    assert row(text, "square [0]")[1] == "no_status"
    assert row(text, "square [1]")[1] == "queued"
    assert " square  " not in text


def test_snapshot_replaces_the_state() -> None:
    text = render(snapshot(info("ask", "success")), snapshot(info("answer", None)))
    assert " ask " not in text
    assert row(text, "answer")


def test_task_with_many_instances_has_counts() -> None:
    text = render(snapshot(counts={"square": {"success": 150, "running": 3}}))
    assert "square" in text
    assert "150" in text


def test_a_task_in_a_loop_has_its_newest_iteration() -> None:
    def iteration(number: int, *frames: TaskInfo | TaskTransition | Chunk) -> list[AnyFrame]:
        return [replace(frame, iteration=number) for frame in frames]  # type: ignore[misc]

    listed = [replace(info("answer", "success", 0), iteration=0), replace(info("answer", "running"), iteration=1)]
    text = render(snapshot(*listed), *iteration(1, chunk(0, '"one"')), *iteration(0, chunk(0, '"late"')))
    assert row(text, "answer (iteration 1)")[:2] == ["answer (iteration 1)", "running"]
    assert "[0]" not in text
    assert "late" not in text
    text = render(
        snapshot(*listed),
        *iteration(1, chunk(0, '"one"')),
        *iteration(2, transition("answer", None), chunk(0, '"two"')),
        *iteration(0, transition("answer", "failed")),
    )
    assert row(text, "answer (iteration 2)")[:2] == ["answer (iteration 2)", "no_status"]
    assert "answer (iteration 2): two" in text
    assert "one" not in text
    assert "(iteration 0)" not in text


def test_run_transition_updates_the_state() -> None:
    frame = RunTransition(**{**RUN, "seq": 1, "at": at(0)}, state="success", previous_state="running", clear_number=0)
    assert "Run: success" in render(snapshot(), frame)


def test_names_are_not_interpreted_as_markup() -> None:
    assert row(render(snapshot(info("[red]x[/red]", None))), "[red]x[/red]")


def test_last_line_is_the_last_event() -> None:
    text = render(snapshot(), Failure(**RUN, reason="run_failed"))
    assert text.rstrip().endswith("failure: run_failed")


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (snapshot(info("ask", None)), "run running, 1 task instances"),
        (transition("ask", "queued"), "ask: queued"),
        (transition("ask", None, 3), "ask [3]: no_status"),
        (Result(**RUN, results={}, references={"a": Reference(href="/", bytes=9)}), "result of a"),
        (Failure(**RUN, reason="task_failed", task_id="ask", try_number=2), "failure: task_failed in ask (try 2)"),
        (Failure(**RUN, reason="run_deleted"), "failure: run_deleted"),
        (Reset(**RUN, reason="cleared"), "reset: cleared"),
        (End(**RUN, state="failed", outcome="failure"), "failure; the run is failed"),
        (End(**RUN, state="running", outcome="result"), "result; the run is running and continues"),
        (End(**RUN, state="success", outcome="none"), "no result; the run is success"),
        (End(**RUN, state=None, outcome="failure"), "the run was deleted"),
        (Ping(), "ping"),
        (Close(code=4001, reason="bye", reconnect=True), "close"),
    ],
)
def test_describe_frame(frame: AnyFrame, line: str) -> None:
    assert describe_frame(frame) == line


def test_output_grows_until_a_reset() -> None:
    begun: list[AnyFrame] = [
        snapshot(info("answer", "running")),
        progress(0.25, "writing"),
        chunk(1, '"Be"'),
        chunk(2, '"cause"'),
    ]
    text = render(*begun)
    assert "answer: Because" in text
    assert "running 25% writing" in text
    text = render(*begun, Reset(**RUN, reason="retried"), snapshot(info("answer", "up_for_retry")), chunk(0, '"So"'))
    assert "answer: So" in text
    assert "Because" not in text


def test_describe_output_that_is_not_text_or_not_permitted() -> None:
    assert describe_frame(chunk(0, '{"a":1}', 2)) == 'answer [2] output: {"a":1}\n'
    assert describe_frame(chunk(0, None)) == "answer output: (not permitted)"
    assert describe_frame(progress(None, "searching")) == "answer: searching"


def test_describe_what_an_agent_does() -> None:
    frames = [wire.frame for wire in FRAMES if isinstance(wire.frame, Thinking | ToolCall | ToolResult)]
    assert [describe_frame(frame) for frame in frames] == [
        "answer thinks: The user asks for the weather.",
        'answer calls get_weather {"city":"Paris"}',
        'answer tool call c1 returned {"celsius":21}',
        "answer tool call c1 failed: No such city",
    ]
    assert [describe_frame(frame) for frame in redact(frames[:3])] == [
        "answer thinking: (not permitted)",
        "answer tool_call: (not permitted)",
        "answer tool_result: (not permitted)",
    ]
    result = ToolResponse(id="c1", result=Raw(b'"' + b"x" * 1000 + b'"'))
    assert len(describe_frame(replace(frames[-1], value=result))) < 300
    assert "calls get_weather" in render(snapshot(info("answer", "running")), frames[1])


def test_counts_are_those_of_a_fresh_client_after_an_expansion() -> None:
    table = RunTable(*KEY)
    table.update(snapshot(counts={"square": {"no_status": 150}}))
    for index in (152, 150, 151, 3):
        table.update(transition("square", None if index >= 150 else "running", index))
    table.update(transition("square", "running", 151))
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table)
    assert "151 no_status, 2 running" in shown.get()
    assert "square [153]" in shown.get()
