"""What all frames share, and the frames that are born of rows of the journal: transitions, and what tasks say. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time, UTC; RFC 3339 on the wire."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all frames share."""


class RunFrame(Frame, frozen=True, kw_only=True):
    """A frame about one DAG run."""

    dag_id: str
    """The DAG."""

    run_id: str
    """The run, as Airflow names it."""


class RowFrame(RunFrame, frozen=True, kw_only=True):
    """A frame born of one journal row."""

    seq: int
    """Identity of the row; together with `type` it is unique in the stream, but for `chunk` and `progress`."""

    at: Moment
    """When the row was written, inside Airflow's transaction; UTC."""


class TaskTransition(RowFrame, frozen=True, kw_only=True, tag="task"):
    """A task instance changed. An instance with `map_index` 0 or more takes the place of the one with -1."""

    task_id: str
    map_index: int
    try_number: int
    state: str | None
    """The new state; `null` where the task is not scheduled, as after it was cleared."""

    previous_state: str | None
    """The state before; `null` where there was none."""


class RunTransition(RowFrame, frozen=True, kw_only=True, tag="run"):
    """The run changed its state, or was cleared."""

    state: str | None
    """The new state; `null` where the run was deleted."""

    previous_state: str | None
    clear_number: int


class OutputFrame(RowFrame, frozen=True, kw_only=True):
    """A frame about what a running task has said. A row of the journal may hold several of them."""

    task_id: str
    map_index: int
    try_number: int
    index: int
    """Place among all that this try has said, chunks and progress together, from 0. What is missing was never kept."""


class Chunk(OutputFrame, frozen=True, kw_only=True, tag="chunk", omit_defaults=True):
    """A running task has said something: a part of its answer, mostly."""

    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Any JSON value, as the database holds it; text is to be appended to what came before."""

    withheld: bool = False
    """Whether the caller may not read the value, and it was left out."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How far a task has come."""

    fraction: float | None = None
    """From 0 to 1; `null` where that can't be said."""

    text: str | None = None
    """The same in words."""


class Progress(OutputFrame, frozen=True, kw_only=True, tag="progress", omit_defaults=True):
    """A running task has said how far it has come."""

    value: Report | msgspec.UnsetType = msgspec.UNSET
    """How far; it takes the place of what was said before."""

    withheld: bool = False


Said: TypeAlias = Chunk | Progress
"""What running tasks say."""
