"""Shows a run in a terminal: as a table, or a line for each frame."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone

import msgspec
from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_server.cli.control_characters import replace_control_characters
from stream_server.domain.run_state import FINAL_RUN_STATES
from stream_server.protocol.frames import (
    NO_STATUS,
    AnyFrame,
    End,
    Failure,
    Reset,
    Result,
    Resumed,
    RunTransition,
    Snapshot,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.input_frames import Input, InputAnswered
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

MAX_OUTPUT_CHARACTERS = 10_000
"""Most characters of a task's output that the table shows; the last ones."""

MAX_VALUE_CHARACTERS = 200
"""Most characters of the arguments or the result of a tool call that are shown."""

_STATE_STYLES = {
    "success": "green",
    "running": "bright_green",
    "failed": "bold red",
    "upstream_failed": "orange3",
    "skipped": "hot_pink",
    "up_for_retry": "gold1",
    "up_for_reschedule": "turquoise2",
    "queued": "grey62",
    "scheduled": "tan",
    "deferred": "medium_purple",
    "awaiting_input": "medium_purple",
    "restarting": "violet",
    "removed": "grey42",
}
"""Colours of states, similar to those in Airflow's UI."""


@dataclass
class _TaskRow:
    state: str | None
    try_number: int
    started_at: float | None = None
    duration: float | None = None

    def update(self, state: str | None, try_number: int) -> None:
        now = time.monotonic()
        if state == "running":
            self.started_at, self.duration = now, None
        elif self.started_at is not None and self.duration is None:
            self.duration = now - self.started_at
        self.state, self.try_number = state, try_number

    @property
    def elapsed_seconds(self) -> float | None:
        """Duration of the current or last execution; `None` before the first one."""
        if self.duration is not None or self.started_at is None:
            return self.duration
        return time.monotonic() - self.started_at


class RunTable:
    """State of a run, built from its frames, as a table."""

    def __init__(self, dag_id: str, run_id: str) -> None:
        self._title = Text(f"{dag_id} / {run_id}", style="italic", no_wrap=True, overflow="fold")
        self._state: str | None = None
        self._rows: dict[tuple[str, int], _TaskRow] = {}
        """Of tasks in loops, the instances of the newest iteration."""

        self._iterations: dict[str, int] = {}
        """The newest iteration of each task in a loop."""

        self._counts: dict[str, dict[str, int]] = {}
        self._above_gap: dict[str, set[int]] = {}
        """Of the tasks in `_counts`: indexes of instances above a gap. All below the gap are counted."""

        self._last_event = Text()
        self._output: dict[tuple[str, int], str] = {}
        self._progress: dict[tuple[str, int], Report] = {}

    def update(self, frame: AnyFrame) -> None:
        if isinstance(frame, (Chunk, Progress)):
            self._add_output(frame)
        elif isinstance(frame, Snapshot):
            self._replace_state(frame)
        elif isinstance(frame, TaskTransition):
            self._apply_task(frame)
        elif isinstance(frame, RunTransition):
            self._state = frame.state
        elif not isinstance(frame, Resumed):
            self._last_event = Text(describe_frame(frame))

    def _replace_state(self, frame: Snapshot) -> None:
        self._output, self._progress, self._rows = {}, {}, {}
        self._iterations, self._above_gap = {}, {}
        self._state = frame.run.state
        self._counts = {task_id: dict(states) for task_id, states in frame.counts.items()}
        for task in frame.tasks:
            if self._begin_iteration(task.task_id, task.iteration):
                self._rows[task.task_id, task.map_index] = _initial_row(
                    task.state, task.try_number, task.start_date, task.end_date
                )

    def _apply_task(self, frame: TaskTransition) -> None:
        if not self._begin_iteration(frame.task_id, frame.iteration):
            return
        if frame.task_id in self._counts:
            self._count_instance(frame)
            return
        if frame.map_index >= 0:
            self._rows.pop((frame.task_id, -1), None)
        row = self._rows.setdefault((frame.task_id, frame.map_index), _TaskRow(None, 0))
        row.update(frame.state, frame.try_number)

    def _begin_iteration(self, task_id: str, iteration: int | None) -> bool:
        """Drop what is shown of earlier iterations of a task. Return false if a newer one is shown."""
        newest = self._iterations.get(task_id, -1)
        if iteration is not None and iteration > newest:
            self._iterations[task_id] = iteration
            if newest >= 0:
                self._counts.pop(task_id, None)
                self._rows = {key: row for key, row in self._rows.items() if key[0] != task_id}
                self._output = {key: text for key, text in self._output.items() if key[0] != task_id}
                self._progress = {key: report for key, report in self._progress.items() if key[0] != task_id}
        return iteration is None or iteration >= newest

    def _count_instance(self, frame: TaskTransition) -> None:
        """Count the transition of an instance of a task with many instances.

        A frame of a new instance looks like one of an instance without a state. But Airflow numbers the instances of a
        mapped task from 0 without gaps: new is what is above those that are counted.
        """
        states = self._counts[frame.task_id]
        above = self._above_gap.setdefault(frame.task_id, set())
        gap = sum(states.values()) - len(above)
        states[frame.state or NO_STATUS] = states.get(frame.state or NO_STATUS, 0) + 1
        if frame.map_index < gap or frame.map_index in above:
            previous = frame.previous_state or NO_STATUS
            states[previous] = max(0, states.get(previous, 0) - 1)
            return
        above.add(frame.map_index)
        while gap in above:
            above.remove(gap)
            gap += 1

    def _add_output(self, frame: Chunk | Progress) -> None:
        if not self._begin_iteration(frame.task_id, frame.iteration):
            return
        key = (frame.task_id, frame.map_index)
        if isinstance(frame, Progress):
            if frame.value is not UNSET:
                self._progress[key] = frame.value
        elif frame.value is not UNSET:
            output = self._output.get(key, "") + _format_output(frame.value)
            self._output[key] = output[-MAX_OUTPUT_CHARACTERS:]

    def __rich__(self) -> RenderableType:
        table = Table(header_style="bold")
        table.add_column("Task")
        table.add_column("State")
        table.add_column("Try", justify="right")
        table.add_column("Seconds", justify="right")
        for (task_id, map_index), row in self._rows.items():
            seconds = row.elapsed_seconds
            report = self._progress.get((task_id, map_index)) if row.state == "running" else None
            table.add_row(
                Text(describe_instance(task_id, map_index, self._iterations.get(task_id))),
                _format_state(row.state)
                if report is None
                else Text.assemble(_format_state(row.state), f" {_format_progress(report)}"),
                str(row.try_number),
                "" if seconds is None else f"{seconds:.1f}",
            )
        for task_id, states in self._counts.items():
            counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
            table.add_row(Text(f"{task_id} [{sum(states.values())}]"), Text(counts), "", "")
        output = [
            Text.assemble((f"{describe_instance(*key, self._iterations.get(key[0]))}: ", "bold"), text)
            for key, text in self._output.items()
        ]
        return Group(self._title, table, *output, Text.assemble("Run: ", _format_state(self._state)), self._last_event)


def describe_frame(frame: AnyFrame) -> str:
    """Return a frame as one line of text."""
    match frame:
        case Snapshot():
            text = f"run {frame.run.state}, {len(frame.tasks)} task instances"
        case TaskTransition():
            label = describe_instance(frame.task_id, frame.map_index, frame.iteration)
            text = f"{label}: {frame.state or NO_STATUS}"
        case Chunk():
            text = f"{describe_instance(frame.task_id, frame.map_index, frame.iteration)} output: "
            text += "(not permitted)" if frame.value is UNSET else _format_output(frame.value)
        case Progress():
            text = f"{describe_instance(frame.task_id, frame.map_index, frame.iteration)}: "
            text += "(not permitted)" if frame.value is UNSET else _format_progress(frame.value)
        case RunTransition():
            text = f"run {frame.state}"
        case Result():
            names = ", ".join([*frame.results, *frame.references])
            text = "result, which this token may not read" if frame.withheld else f"result of {names}"
        case Failure():
            task = "" if frame.task_id is None else f" in {frame.task_id} (try {frame.try_number})"
            text = f"failure: {frame.reason}{task}"
        case Reset() | Waiting():
            text = f"{type(frame).__name__.lower()}: {frame.reason}"
        case End():
            text = _describe_end(frame)
        case _:
            text = _describe_other_frame(frame)
    return replace_control_characters(text)


def _describe_other_frame(frame: AnyFrame) -> str:
    if isinstance(frame, OutputFrame):
        return _describe_agent(frame)
    if isinstance(frame, Input):
        subject = "a question that this token may not read" if frame.withheld else frame.subject or "a question"
        return f"{describe_instance(frame.task_id, frame.map_index, frame.iteration)} asks: {subject}"
    if isinstance(frame, InputAnswered):
        chosen = "not permitted" if frame.withheld else ", ".join(frame.chosen_options)
        return f"{describe_instance(frame.task_id, frame.map_index, frame.iteration)} answered: {chosen}"
    return type(frame).__name__.lower()


def _describe_agent(frame: OutputFrame) -> str:
    label = describe_instance(frame.task_id, frame.map_index, frame.iteration)
    match frame:
        case Thinking(value=str() as text):
            return f"{label} thinks: {' '.join(text.split())}"
        case ToolCall(value=ToolRequest() as request):
            return f"{label} calls {request.name} {_shorten(request.arguments)}"
        case ToolResult(value=ToolResponse(error=str() as error) as response):
            return f"{label} tool call {response.id} failed: {error}"
        case ToolResult(value=ToolResponse() as response):
            result = "" if response.result is UNSET else _shorten(response.result)
            return f"{label} tool call {response.id} returned {result}"
        case _:
            return f"{label} {frame.__struct_config__.tag}: (not permitted)"


def _shorten(value: msgspec.Raw) -> str:
    text = bytes(value).decode()
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[: MAX_VALUE_CHARACTERS - 1] + "…"


def describe_instance(task_id: str, map_index: int, iteration: int | None = None) -> str:
    """Return the name of a task instance for people."""
    index = "" if map_index < 0 else f" [{map_index}]"
    return task_id + index + ("" if iteration is None else f" (iteration {iteration})")


def _format_output(value: msgspec.Raw) -> str:
    """Return a value as text: a string as it is, other values as JSON in a separate line."""
    decoded = msgspec.json.decode(value)
    return replace_control_characters(decoded if isinstance(decoded, str) else f"{bytes(value).decode()}\n")


def _format_progress(report: Report) -> str:
    share = "" if report.fraction is None else f"{report.fraction:.0%}"
    return replace_control_characters(" ".join(part for part in (share, report.text) if part))


def describe_missing_outcome(end: End) -> str:
    """Return why a run has neither a result nor a failure, as a sentence."""
    match end.reason:
        case "task_skipped":
            text = f"task {end.task_id} was skipped"
        case "no_result_task":
            text = "no task of the DAG is a result task; mark one, or name it with --result"
        case "run_ended":
            text = "the run ended before its result tasks had a value"
        case _:
            text = (end.reason or "the server gave no reason").replace("_", " ")
    return f"Ended without a result: {text}."


def _describe_end(end: End) -> str:
    if end.state is None:
        return "the run was deleted"
    suffix = "" if end.state in FINAL_RUN_STATES else " and continues"
    return f"{end.outcome if end.outcome != 'none' else 'no result'}; the run is {end.state}{suffix}"


def _format_state(state: str | None) -> Text:
    return Text(state or NO_STATUS, style=_STATE_STYLES.get(state or "", "grey50"))


def _initial_row(state: str | None, try_number: int, start: datetime | None, end: datetime | None) -> _TaskRow:
    row = _TaskRow(state, try_number)
    if start is not None and state is not None:
        finish = end if end is not None and state != "running" else datetime.now(timezone.utc)
        seconds = max(0.0, (finish - start).total_seconds())
        row.started_at = time.monotonic() - seconds
        row.duration = None if state == "running" else seconds
    return row
