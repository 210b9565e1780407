"""A run as a table in a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone

import msgspec
from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_server.domain.run_state import RUN_FINAL
from stream_server.protocol.frames import (
    NO_STATUS,
    AnyFrame,
    Chunk,
    End,
    Failure,
    Progress,
    Report,
    Reset,
    Result,
    Resumed,
    RunTransition,
    Snapshot,
    TaskTransition,
)

MAX_SAID = 10_000
"""Characters that are shown of what a task has said, the last ones."""

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
        self._said: dict[tuple[str, int], str] = {}
        self._progress: dict[tuple[str, int], Report] = {}

    def follow(self, frame: AnyFrame) -> None:
        """Take in a frame."""
        if isinstance(frame, (Chunk, Progress)):
            self._hear(frame)
        elif isinstance(frame, Snapshot):
            self._said, self._progress = {}, {}
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

    def _hear(self, frame: Chunk | Progress) -> None:
        place = (frame.task_id, frame.map_index)
        if isinstance(frame, Progress):
            if frame.value is not UNSET:
                self._progress[place] = frame.value
        elif frame.value is not UNSET:
            said = self._said.get(place, "") + _text_of(frame.value)
            self._said[place] = said[-MAX_SAID:]

    def __rich__(self) -> RenderableType:
        table = Table(header_style="bold")
        table.add_column("task")
        table.add_column("state")
        table.add_column("try", justify="right")
        table.add_column("seconds", justify="right")
        for (task_id, map_index), row in self._rows.items():
            seconds = row.seconds
            report = self._progress.get((task_id, map_index)) if row.state == "running" else None
            table.add_row(
                Text(_name(task_id, map_index)),
                _state(row.state) if report is None else Text.assemble(_state(row.state), f" {_told(report)}"),
                str(row.try_number),
                "" if seconds is None else f"{seconds:.1f}",
            )
        for task_id, states in self._counts.items():
            told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
            table.add_row(Text(f"{task_id} [{sum(states.values())}]"), Text(told), "", "")
        said = [Text.assemble((f"{_name(*place)}: ", "bold"), text) for place, text in self._said.items()]
        return Group(self._title, table, *said, Text.assemble("run: ", _state(self._state)), self._note)


def describe(frame: AnyFrame) -> str:
    """Tell a frame in one line."""
    match frame:
        case Snapshot():
            text = f"run {frame.run.state}, {len(frame.tasks)} task instances"
        case TaskTransition():
            index = "" if frame.map_index < 0 else f" [{frame.map_index}]"
            text = f"{frame.task_id}{index}: {frame.state or NO_STATUS}"
        case Chunk():
            text = f"{_name(frame.task_id, frame.map_index)} says: "
            text += "(withheld)" if frame.value is UNSET else _text_of(frame.value)
        case Progress():
            text = f"{_name(frame.task_id, frame.map_index)}: "
            text += "(withheld)" if frame.value is UNSET else _told(frame.value)
        case RunTransition():
            text = f"run {frame.state}"
        case Result():
            names = ", ".join([*frame.results, *frame.references])
            text = "there is a result, which may not be read" if frame.withheld else f"result of {names}"
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


def _name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


def _text_of(value: msgspec.Raw) -> str:
    """Return what is shown of a value: text as it is, anything else as JSON in a line of its own."""
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, str) else f"{bytes(value).decode()}\n"


def _told(report: Report) -> str:
    share = "" if report.fraction is None else f"{report.fraction:.0%}"
    return " ".join(part for part in (share, report.text) if part)


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
