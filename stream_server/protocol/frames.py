"""The frames: each thing that a client can see, as one JSON object with its `type` first.

All transports send the same objects. What is encoded is encoded once, in `Wire`, however many clients watch.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from stream_server.protocol.close_codes import CloseCode

Timestamp: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
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

    at: Timestamp
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


AnyOutputFrame: TypeAlias = Chunk | Progress
"""What running tasks say."""

NO_STATUS = "no_status"
"""Key under which instances without a state are counted, as in Airflow's own statistics."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a DAG run."""

    state: str | None
    """`queued`, `running`, `success` or `failed`, and what later versions of Airflow add."""

    queued_at: Timestamp | None
    """When it was queued last."""

    start_date: Timestamp | None
    """When it began; `null` before."""

    end_date: Timestamp | None
    """When it ended; `null` before."""

    clear_number: int
    """How often the run was cleared."""


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a task instance."""

    task_id: str
    """The task."""

    map_index: int
    """Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet."""

    try_number: int
    """Which try it is, counted from 1; 0 before the first."""

    state: str | None
    """As Airflow names it; `null` before the task is scheduled."""

    start_date: Timestamp | None
    end_date: Timestamp | None


class Snapshot(RunFrame, frozen=True, kw_only=True, tag="snapshot", omit_defaults=True):
    """All that is known of the run at this moment; what follows goes on from here."""

    run: RunInfo
    """The run itself."""

    tasks: list[TaskInfo]
    """The task instances."""

    result_tasks: list[str]
    """Tasks whose return values answer the caller, as far as they are known yet."""

    counts: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Instances per state, by task, for mapped tasks with too many instances to list in `tasks`."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where to get a value that is too large to be sent."""

    href: str
    """Path below Airflow's address."""

    bytes: int
    """Size of the value as JSON text."""


class Result(RunFrame, frozen=True, kw_only=True, tag="result", omit_defaults=True):
    """The answer: what the result tasks returned. The run may still go on."""

    results: dict[str, msgspec.Raw]
    """JSON value by task, as the database holds it; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] = msgspec.field(default_factory=dict)
    """By task, where to get a value that is too large to be sent."""

    withheld: bool = False
    """Whether there are values that the caller may not read; then there are neither `results` nor `references`."""

    seq: int | None = None
    """Row that completed the answer; absent where it was complete before the stream began."""

    at: Timestamp | None = None


FAILURE_REASONS = (
    "task_failed",
    "task_upstream_failed",
    "task_skipped",
    "task_removed",
    "run_failed",
    "run_deleted",
)
"""Why an answer will not come. Clients of an older version may meet one that they don't know."""


class Failure(RunFrame, frozen=True, kw_only=True, tag="failure", omit_defaults=True):
    """It is certain that the answer will not come."""

    reason: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(FAILURE_REASONS)})]
    """What became of the task instance at fault, or of the run where no task is."""

    task_id: str | None = None
    """The task at fault."""

    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    """State of the task instance at fault, or of the run where no task is."""

    predicted: bool = False
    """Whether Airflow has yet to write down what makes it certain."""

    seq: int | None = None
    """Row that made it certain; absent where it was certain before the stream began."""

    at: Timestamp | None = None


ResetReason: TypeAlias = Literal[
    "cleared",
    "retried",
    "revoked",
    "journal_changed",
    "transitions_lost",
    "cursor_expired",
    "cursor_foreign",
    "cursor_damaged",
    "access_changed",
]
"""What a server of this version may say. Clients of an older version may meet one that they don't know."""


class Reset(Frame, frozen=True, kw_only=True, tag="reset", omit_defaults=True):
    """Forget what was said; a snapshot follows. In a stream of many runs none does, and no run is named."""

    dag_id: str | None = None
    run_id: str | None = None
    reason: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(get_args(ResetReason))})]
    """Why what was said is worth nothing any more.

    `cleared`, `retried`, `revoked`: an outcome was taken back, or what a task had said. `journal_changed`: the database
    was replaced or set back. `transitions_lost`: something was not written down. `cursor_expired`, `cursor_foreign`,
    `cursor_damaged`: the client came back with a cursor older than the journal, of another journal, or that is none.
    `access_changed`: the client came back, and may read values now that were withheld from him.
    """


class Resumed(Frame, frozen=True, kw_only=True, tag="resumed", omit_defaults=True):
    """The stream goes on where the client was: what was missed follows, and then what comes."""

    dag_id: str | None = None
    run_id: str | None = None
    since: str
    """Cursor that the client came back with."""


class End(RunFrame, frozen=True, kw_only=True, tag="end"):
    """The stream is over; nothing comes after it."""

    state: str | None
    """State of the run; `None` where the run was deleted."""

    outcome: Literal["result", "failure", "none"]
    """What the caller was told; `none` where no task answers."""


class Close(Frame, frozen=True, kw_only=True, tag="close"):
    """The connection ends, but the stream does not."""

    code: Annotated[int, msgspec.Meta(extra_json_schema={"enum": [int(code) for code in CloseCode]})]
    """Also the close code of a WebSocket. Below 4500 the client should connect again, from 4500 on it should not."""

    reason: str
    """The same in words, for people."""

    reconnect: bool
    """Whether the client should connect again; what clients go by that don't know the code."""

    retry_ms: int | None = None
    """How long to wait before connecting again, in milliseconds."""


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Nothing happened, and the connection is alive. A frame, since scripts can't see SSE comments."""


class AuthExpiring(Frame, frozen=True, kw_only=True, tag="auth_expiring"):
    """The token is about to expire. The client can send another one, and the connection goes on."""

    expires_at: Timestamp
    """When it does."""


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """What the client asked for on a WebSocket was done."""

    op: Literal["subscribe", "unsubscribe", "ping", "auth"]
    """What was done."""

    id: str
    """What the client called it; empty where it gave no name."""


class Refusal(Frame, frozen=True, kw_only=True, tag="error"):
    """What the client asked for on a WebSocket was refused. All else goes on."""

    id: str
    """What the client called it; empty where it could not be read."""

    problem: str
    """The `type` of the problem, as in `application/problem+json` (RFC 9457)."""

    title: str
    """The same in words."""

    status: int
    """The HTTP status code that a request of its own would have been answered with."""

    detail: str
    """What was wrong, and what would be right."""


AnyFrame: TypeAlias = (
    Snapshot
    | TaskTransition
    | RunTransition
    | Chunk
    | Progress
    | Result
    | Failure
    | Reset
    | Resumed
    | End
    | Close
    | Ping
    | AuthExpiring
    | Ack
    | Refusal
)
