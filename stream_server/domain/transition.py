"""One committed journal row, as all parts of the server handle it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

RETURN_VALUE_KEY = "return_value"
"""Key of the XCom that holds the return value of a task (`airflow.models.xcom.XCOM_RETURN_KEY`)."""

OUTPUT_KEY = "stream_server_output"
"""Key of the XCom that a running task overwrites with each batch of output (`stream_server.authoring.output`)."""

OPEN, ANSWERED = "open", "answered"
"""States of rows of kind `INPUT`. Triggers of an earlier version write none."""


class TransitionKind(str, Enum):
    """What changed."""

    TASK = "task"
    RUN = "run"
    RUN_DELETED = "run_deleted"
    XCOM = "xcom"
    RUN_CHANGED = "run_changed"
    """Task instances of the run have another DAG version, or were deleted: the run must be read again."""

    INPUT = "input"
    """A request for human input was written (`hitl_detail`), or its answer. The row names a task instance by its id,
    and no run: a trigger must not read Airflow's tables. `journal.human_input` adds what is missing."""


class Transition(NamedTuple):
    """A change that a trigger has written. Fields that a kind does not have are `None`."""

    seq: int
    """Id of the row: unique, and ascending for the transitions of one task instance."""

    txid: int
    """Transaction that wrote the row (`xid8`)."""

    at: datetime
    """When the row was written, UTC. The commit comes a little later."""

    kind: TransitionKind
    dag_id: str
    run_id: str
    task_id: str | None = None
    map_index: int | None = None
    """-1 if the task is not mapped, or not expanded yet."""

    try_number: int | None = None
    state: str | None = None
    previous_state: str | None = None
    clear_number: int | None = None
    queued_at: datetime | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    xcom_key: str | None = None
    dag_result: bool | None = None
    """Airflow 3.3's own mark on the return values of result tasks; `None` before 3.3."""

    iteration: int | None = None
    """Iteration of the task loop (Airflow 3.4) that the task instance belongs to, from 0; `None` outside of loops."""
    ti_id: UUID | None = None
    """Id of a task instance; only of kind `INPUT`."""

    body: str | None = None
    """Output of a task, or a request for human input, as JSON text; also `None` if output was too large or not read."""

    had_output: bool = False
    """Whether the task instance had emitted output before, which this transition may retract. Only set in a history."""


class ReadTiming(NamedTuple):
    """When a batch was read, and how old it was then."""

    lag: float
    """Seconds from the writing of its oldest row to the read, by PostgreSQL's clock."""

    at: float
    """When it was read: `time.monotonic()`, which all processes of a host share."""


class UndecodableRow(ValueError):
    """A journal row is no transition. The message names the cause; it is the same for all rows with this cause."""


_KINDS = {kind.value: kind for kind in TransitionKind}
_NEEDED_COLUMNS = {
    TransitionKind.TASK: ("dag_id", "run_id", "task_id", "map_index"),
    TransitionKind.XCOM: ("dag_id", "run_id", "task_id", "map_index"),
    TransitionKind.INPUT: (),
}


def decode_row(columns: tuple[Any, ...]) -> Transition:
    """Return the transition of a journal row.

    Args:
        columns: In the order of the fields of `Transition`; trailing fields may be absent.

    Raises:
        UndecodableRow: The kind is unknown, as a newer version may write it, or a column that the kind needs is NULL.
    """
    seq, txid, at, name, *rest = columns
    kind = _KINDS.get(name)
    if kind is None:
        raise UndecodableRow(f"unknown kind {name!r}")
    row = Transition(seq, txid, at, kind, *rest)
    needed = _NEEDED_COLUMNS.get(kind, ("dag_id", "run_id"))
    if missing := [column for column in needed if getattr(row, column) is None]:
        raise UndecodableRow(f"{' and '.join(missing)} of kind {name!r} must not be NULL")
    return row
