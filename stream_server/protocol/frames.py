"""Frames: the JSON objects that the server streams to clients, with their `type` as the first member.

All transports send the same objects; `wire` encodes them. Docstrings and descriptions here are published: in
`/schema/frames.json`, `/openapi.json`, `/asyncapi.json` and the TypeScript client.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frame_members import (
    ClearNumber,
    Frame,
    Iteration,
    MapIndex,
    MapIndexes,
    NoOutcomeReason,
    PreviousState,
    Reference,
    RowFrame,
    RunFrame,
    SkippedTaskId,
    TaskId,
    Timestamp,
    TryNumber,
)
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import Chunk, Progress, Thinking, ToolCall, ToolResult

References: TypeAlias = Annotated[
    dict[str, Reference], Meta(description="By task, where to get a value that is too large to be sent.")
]


class TaskTransition(RowFrame, frozen=True, kw_only=True, tag="task", omit_defaults=True):
    """A task instance changed. An instance with `map_index` 0 or more replaces the one with -1."""

    task_id: TaskId
    map_index: MapIndex
    try_number: TryNumber
    state: Annotated[
        str | None,
        Meta(description="The new state; `null` if the task is not scheduled, for example after it was cleared."),
    ]
    previous_state: PreviousState
    iteration: Iteration = None


class RunTransition(RowFrame, frozen=True, kw_only=True, tag="run"):
    """The run changed its state, or was cleared."""

    state: Annotated[str | None, Meta(description="The new state; `null` if the run was deleted.")]
    previous_state: PreviousState
    clear_number: ClearNumber


NO_STATUS = "no_status"
"""Key for instances without a state, as in Airflow's own statistics."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a DAG run."""

    state: Annotated[
        str | None,
        Meta(description="`queued`, `running`, `success` or `failed`, or a state that a later Airflow adds."),
    ]
    queued_at: Annotated[Timestamp | None, Meta(description="When it was last queued.")]
    start_date: Annotated[Timestamp | None, Meta(description="When it started; `null` before.")]
    end_date: Annotated[Timestamp | None, Meta(description="When it ended; `null` before.")]
    clear_number: ClearNumber


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """State of a task instance."""

    task_id: TaskId
    map_index: MapIndex
    try_number: TryNumber
    state: Annotated[str | None, Meta(description="Airflow's name of the state; `null` before the task is scheduled.")]
    start_date: Annotated[Timestamp | None, Meta(description="When it started; `null` before.")]
    end_date: Annotated[Timestamp | None, Meta(description="When it ended; `null` before.")]
    iteration: Iteration = None


class Snapshot(RunFrame, frozen=True, kw_only=True, tag="snapshot", omit_defaults=True):
    """The state of the run and its task instances at this moment. Later frames continue from here."""

    run: Annotated[RunInfo, Meta(description="The run.")]
    tasks: Annotated[
        list[TaskInfo],
        Meta(
            description=(
                "The task instances. Of a task in a loop, those of the newest iteration come last, after those of some"
                " earlier ones."
            )
        ),
    ]
    result_tasks: Annotated[
        list[str], Meta(description="Tasks whose return values are the result, as far as they are known yet.")
    ]
    counts: Annotated[
        dict[str, dict[str, int]],
        Meta(
            description=(
                "Number of instances by task and state, for tasks that are not in `tasks` because there are too many"
                " instances to list them."
            )
        ),
    ] = msgspec.field(default_factory=dict)


WAITING_REASONS = ("dag_paused", "active_runs", "pool")
"""Reasons that this version sends. Older clients must accept reasons that they do not know."""


class Waiting(RunFrame, frozen=True, kw_only=True, tag="waiting", omit_defaults=True):
    """The run does not proceed. This holds until the next frame of type `waiting`, `run`, `task` or `snapshot`."""

    reason: Annotated[
        str | None,
        Meta(
            description=(
                "Why the run waits; `null` if the reason that was sent does not hold any more.\n\n"
                "`dag_paused`: the DAG is paused. `active_runs`: as many runs of the DAG are running as its"
                " `max_active_runs` permits. `pool`: the pools of all scheduled task instances have too few free slots."
            ),
            extra_json_schema={"enum": [*WAITING_REASONS, None]},
        ),
    ]
    active_runs: Annotated[int | None, Meta(description="Number of running runs; only with `active_runs`.")] = None
    pool: Annotated[str | None, Meta(description="The first such pool; only with `pool`.")] = None
    slots: Annotated[int | None, Meta(description="Its slots; absent if Airflow has no such pool.")] = None
    occupied: Annotated[int | None, Meta(description="How many of them are occupied.")] = None
    needed: Annotated[int | None, Meta(description="How many slots the task instance needs.")] = None


class Result(RunFrame, frozen=True, kw_only=True, tag="result", omit_defaults=True):
    """The return values of the result tasks. The run may still be running."""

    results: Annotated[
        dict[str, msgspec.Raw],
        Meta(
            description=(
                "JSON value by task, as the database holds it; of a mapped task a list by `map_index`; of a task in a"
                " loop the value in its last iteration."
            )
        ),
    ]
    references: References = msgspec.field(default_factory=dict)
    map_indexes: MapIndexes = msgspec.field(default_factory=dict)
    withheld: Annotated[
        bool,
        Meta(
            description=(
                "Whether values are left out because the caller may not read them. Then `results`, `references` and"
                " `map_indexes` are empty."
            )
        ),
    ] = False
    seq: Annotated[
        int | None,
        Meta(description="Row that completed the result; absent if it was complete before the stream started."),
    ] = None
    at: Annotated[
        Timestamp | None, Meta(description="When the row was written, inside Airflow's transaction; UTC.")
    ] = None


FAILURE_REASONS = (
    "task_failed",
    "task_upstream_failed",
    "task_skipped",
    "task_removed",
    "run_failed",
    "run_deleted",
)
"""Reasons that this version sends. Older clients must accept reasons that they do not know."""


class Failure(RunFrame, frozen=True, kw_only=True, tag="failure", omit_defaults=True):
    """It is certain that there will be no result."""

    reason: Annotated[
        str,
        Meta(
            description="What happened to the task instance that is the root cause, or to the run if no task is.",
            extra_json_schema={"enum": list(FAILURE_REASONS)},
        ),
    ]
    task_id: Annotated[str | None, Meta(description="Task of the instance that is the root cause.")] = None
    map_index: Annotated[
        int | None,
        Meta(description="Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet."),
    ] = None
    try_number: Annotated[
        int | None, Meta(description="Number of the try, counted from 1; 0 before the first try.")
    ] = None
    state: Annotated[
        str | None,
        Meta(description="State of the task instance that is the root cause, or of the run if no task is."),
    ] = None
    iteration: Iteration = None
    predicted: Annotated[
        bool, Meta(description="Whether the failure is certain before Airflow has written the state that causes it.")
    ] = False
    seq: Annotated[
        int | None,
        Meta(description="Row that made the failure certain; absent if it was certain before the stream started."),
    ] = None
    at: Annotated[
        Timestamp | None, Meta(description="When the row was written, inside Airflow's transaction; UTC.")
    ] = None


ResetReason: TypeAlias = Literal[
    "cleared",
    "retried",
    "revoked",
    "run_changed",
    "journal_changed",
    "transitions_lost",
    "cursor_expired",
    "cursor_foreign",
    "cursor_damaged",
    "access_changed",
]
"""Reasons that this version sends. Older clients must accept reasons that they do not know."""


class Reset(Frame, frozen=True, kw_only=True, tag="reset", omit_defaults=True):
    """Discard earlier frames of the run; a snapshot follows. In a stream of many runs: of all runs, without one."""

    dag_id: Annotated[str | None, Meta(description="The DAG.")] = None
    run_id: Annotated[str | None, Meta(description="The run, as Airflow names it.")] = None
    reason: Annotated[
        str,
        Meta(
            description=(
                "Why earlier frames are no longer valid.\n\n"
                "`cleared`, `retried`, `revoked`: an outcome or the output of a task was retracted. `run_changed`: the"
                " run has another DAG version, or its task instances were deleted. `journal_changed`: the database"
                " was replaced or restored. `transitions_lost`: rows are missing from the journal."
                " `cursor_expired`, `cursor_foreign`, `cursor_damaged`: the client resumed with a cursor that is older"
                " than the journal, belongs to another journal, or cannot be read. `access_changed`: the client"
                " resumed, and may now read values that were left out before."
            ),
            extra_json_schema={"enum": list(get_args(ResetReason))},
        ),
    ]


class Resumed(Frame, frozen=True, kw_only=True, tag="resumed", omit_defaults=True):
    """The stream continues from the client's cursor: first the frames that the client missed, then new ones."""

    dag_id: Annotated[str | None, Meta(description="The DAG.")] = None
    run_id: Annotated[str | None, Meta(description="The run, as Airflow names it.")] = None
    since: Annotated[str, Meta(description="The cursor that the client resumed with.")]


class End(RunFrame, frozen=True, kw_only=True, tag="end", omit_defaults=True):
    """The stream is complete; no frame follows."""

    state: Annotated[str | None, Meta(description="State of the run; `null` if the run was deleted.")]
    outcome: Annotated[
        Literal["result", "failure", "none"],
        Meta(description="Which outcome was sent; `none` if there is neither a result nor a failure: see `reason`."),
    ]
    reason: NoOutcomeReason = None
    task_id: SkippedTaskId = None


class Close(Frame, frozen=True, kw_only=True, tag="close"):
    """The connection ends before the stream is complete."""

    code: Annotated[
        int,
        Meta(
            description=(
                "Also the close code of a WebSocket. Below 4500 the client should reconnect, from 4500 on it should"
                " not."
            ),
            extra_json_schema={"enum": [int(code) for code in CloseCode]},
        ),
    ]
    reason: Annotated[str, Meta(description="The reason in words, for people.")]
    reconnect: Annotated[
        bool, Meta(description="Whether the client should reconnect. Clients that do not know the code rely on it.")
    ]
    retry_ms: Annotated[int | None, Meta(description="How long to wait before reconnecting, in milliseconds.")] = None


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Heartbeat. It is a frame because scripts in browsers do not see SSE comments."""


class AuthExpiring(Frame, frozen=True, kw_only=True, tag="auth_expiring"):
    """The token expires soon. If the client sends a new one, the connection stays open."""

    expires_at: Annotated[Timestamp, Meta(description="When the token expires.")]


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """An operation that the client requested on a WebSocket was done."""

    op: Annotated[Literal["subscribe", "unsubscribe", "ping", "auth", "answer"], Meta(description="The operation.")]
    id: Annotated[str, Meta(description="The `id` that the client gave; empty if it gave none.")]


class Refusal(Frame, frozen=True, kw_only=True, tag="error"):
    """An operation that the client requested on a WebSocket was refused. Other streams are not affected."""

    id: Annotated[str, Meta(description="The `id` that the client gave; empty if it could not be read.")]
    problem: Annotated[str, Meta(description="The `type` of the problem, as in `application/problem+json` (RFC 9457).")]
    title: Annotated[str, Meta(description="Short summary of the problem.")]
    status: Annotated[int, Meta(description="HTTP status code that a separate request would have received.")]
    detail: Annotated[str, Meta(description="What is wrong, and what would be right.")]


AnyFrame: TypeAlias = (
    Snapshot
    | Waiting
    | TaskTransition
    | RunTransition
    | Chunk
    | Progress
    | Thinking
    | ToolCall
    | ToolResult
    | Input
    | InputAnswered
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
