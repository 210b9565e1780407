"""A run as a table in a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_server.frames import (
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
)
from stream_server.run_state import RUN_FINAL

_STYLES = {
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
"""Colours of the states, near those of Airflow's own pages."""


@dataclass
class _Row:
    state: str | None
    try_number: int
    since: float = field(default_factory=time.monotonic)
    began: float | None = None
    took: float | None = None

    def follow(self, state: str | None, try_number: int) -> None:
        now = time.monotonic()
        if state == "running":
            self.began, self.took = now, None
        elif self.began is not None and self.took is None:
            self.took = now - self.began
        self.state, self.try_number, self.since = state, try_number, now

    @property
    def seconds(self) -> float | None:
        """How long it has run, or ran."""
        if self.took is not None or self.began is None:
            return self.took
        return time.monotonic() - self.began


class RunView:
    """What is known of a run, as its frames tell it."""

    def __init__(self, dag_id: str, run_id: str) -> None:
        self._title = Text(f"{dag_id} / {run_id}", style="italic", no_wrap=True, overflow="fold")
        self._state: str | None = None
        self._rows: dict[tuple[str, int], _Row] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._note = Text()

    def follow(self, frame: AnyFrame) -> None:
        """Take in a frame."""
        if isinstance(frame, Snapshot):
            self._state = frame.run.state
            self._counts = {task_id: dict(states) for task_id, states in frame.counts.items()}
            self._rows = {
                (task.task_id, task.map_index): _row(task.state, task.try_number, task.start_date, task.end_date)
                for task in frame.tasks
            }
        elif isinstance(frame, TaskTransition) and frame.task_id in self._counts:
            states = self._counts[frame.task_id]
            for state, change in ((frame.previous_state, -1), (frame.state, +1)):
                name = state or NO_STATUS
                states[name] = max(0, states.get(name, 0) + change)
        elif isinstance(frame, TaskTransition):
            if frame.map_index >= 0:
                self._rows.pop((frame.task_id, -1), None)
            row = self._rows.setdefault((frame.task_id, frame.map_index), _Row(None, 0))
            row.follow(frame.state, frame.try_number)
        elif isinstance(frame, RunTransition):
            self._state = frame.state
        elif not isinstance(frame, Resumed):
            self._note = Text(describe(frame))

    def __rich__(self) -> RenderableType:
        table = Table(header_style="bold")
        table.add_column("task")
        table.add_column("state")
        table.add_column("try", justify="right")
        table.add_column("seconds", justify="right")
        for (task_id, map_index), row in self._rows.items():
            name = task_id if map_index < 0 else f"{task_id} [{map_index}]"
            seconds = row.seconds
            table.add_row(
                Text(name),
                _state(row.state),
                str(row.try_number),
                "" if seconds is None else f"{seconds:.1f}",
            )
        for task_id, states in self._counts.items():
            told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
            table.add_row(Text(f"{task_id} [{sum(states.values())}]"), Text(told), "", "")
        return Group(self._title, table, Text.assemble("run: ", _state(self._state)), self._note)


def describe(frame: AnyFrame) -> str:
    """Tell a frame in one line."""
    match frame:
        case Snapshot():
            text = f"run {frame.run.state}, {len(frame.tasks)} task instances"
        case TaskTransition():
            index = "" if frame.map_index < 0 else f" [{frame.map_index}]"
            text = f"{frame.task_id}{index}: {frame.state or NO_STATUS}"
        case RunTransition():
            text = f"run {frame.state}"
        case Result():
            text = f"result of {', '.join([*frame.results, *frame.references])}"
        case Failure():
            task = "" if frame.task_id is None else f" in {frame.task_id} (try {frame.try_number})"
            text = f"failure: {frame.reason}{task}"
        case Reset():
            text = f"taken back: {frame.reason}"
        case End():
            text = _farewell(frame)
        case _:
            text = type(frame).__name__.lower()
    return text


def _farewell(end: End) -> str:
    if end.state is None:
        return "the run is gone"
    going_on = "" if end.state in RUN_FINAL else ", and goes on"
    return f"{end.outcome if end.outcome != 'none' else 'no result'}; the run is {end.state}{going_on}"


def _state(state: str | None) -> Text:
    return Text(state or NO_STATUS, style=_STYLES.get(state or "", "grey50"))


def _row(state: str | None, try_number: int, start: datetime | None, end: datetime | None) -> _Row:
    row = _Row(state, try_number)
    if start is not None and state is not None:
        finish = end if end is not None and state != "running" else datetime.now(timezone.utc)
        seconds = max(0.0, (finish - start).total_seconds())
        row.began = time.monotonic() - seconds
        row.took = None if state == "running" else seconds
    return row
