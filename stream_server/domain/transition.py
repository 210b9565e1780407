"""One committed journal row, as all parts of the server handle it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

RETURN_VALUE_KEY = "return_value"
"""Key of the XCom that holds the return value of a task (`airflow.models.xcom.XCOM_RETURN_KEY`)."""

OUTPUT_KEY = "stream_server_output"
"""Key of the XCom that a running task overwrites with each batch of output (`stream_server.authoring.output`)."""

INPUT = "input"
"""Kind of the rows that requests for human input write (`hitl_detail`). They name a task instance by its id, and no
run: a trigger must not read Airflow's tables. They are no transitions, and nothing consumes them yet; readers skip
them."""


class TransitionKind(str, Enum):
    """What changed."""

    TASK = "task"
    RUN = "run"
    RUN_DELETED = "run_deleted"
    XCOM = "xcom"
    RUN_CHANGED = "run_changed"
    """Task instances of the run have another DAG version, or were deleted: the run must be read again."""


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

    body: str | None = None
    """Output of a task as JSON text; also `None` if it was too large or was not read."""

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
_TASK_KINDS = frozenset({TransitionKind.TASK, TransitionKind.XCOM})


def decode_row(columns: tuple[Any, ...]) -> Transition | None:
    """Return the transition of a journal row, or `None` for a row of kind `INPUT`.

    Args:
        columns: In the order of the fields of `Transition`; trailing fields may be absent.

    Raises:
        UndecodableRow: The kind is unknown, as a newer version may write it, or a column that the kind needs is NULL.
    """
    seq, txid, at, name, *rest = columns
    kind = _KINDS.get(name)
    if kind is None:
        if name == INPUT:
            return None
        raise UndecodableRow(f"unknown kind {name!r}")
    row = Transition(seq, txid, at, kind, *rest)
    needs = ("dag_id", "run_id", "task_id", "map_index") if kind in _TASK_KINDS else ("dag_id", "run_id")
    if missing := [column for column in needs if getattr(row, column) is None]:
        raise UndecodableRow(f"{' and '.join(missing)} of kind {name!r} must not be NULL")
    return row
