"""JSON bodies of responses that are not streams. Docstrings and descriptions here are published in `/openapi.json`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import msgspec
from msgspec import Meta

from stream_server.protocol.frame_members import (
    DagId,
    Iteration,
    MapIndex,
    NoOutcomeReason,
    Reference,
    RunId,
    SkippedTaskId,
    TaskId,
)
from stream_server.protocol.frames import WAITING_REASONS
from stream_server.protocol.input_frames import InputUser

# Members that mean the same in several bodies.

DagRunId: TypeAlias = Annotated[
    str, Meta(description="The run. The member has the name that it has in Airflow's REST API.")
]
IsMapped: TypeAlias = Annotated[
    bool, Meta(description="Whether it is mapped: it has an instance for each of some values.")
]


class FailureInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why there will be no result. The members are those of the `failure` frame."""

    reason: Annotated[
        str, Meta(description="What happened to the task instance that is the root cause, or to the run if no task is.")
    ]
    task_id: Annotated[str | None, Meta(description="Task of the instance that is the root cause.")]
    map_index: Annotated[
        int | None,
        Meta(description="Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet."),
    ]
    try_number: Annotated[int | None, Meta(description="Number of the try, counted from 1; 0 before the first try.")]
    state: Annotated[
        str | None,
        Meta(description="State of the task instance that is the root cause, or of the run if no task is."),
    ]
    predicted: Annotated[
        bool, Meta(description="Whether the failure is certain before Airflow has written the state that causes it.")
    ]
    iteration: Iteration = None


class WaitingInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a run does not proceed, as in the frame `waiting`."""

    reason: Annotated[
        str,
        Meta(
            description=(
                "`dag_paused`: the DAG is paused. `active_runs`: as many runs of the DAG are running as its"
                " `max_active_runs` permits. `pool`: the pools of all scheduled task instances have too few free slots."
            ),
            extra_json_schema={"enum": list(WAITING_REASONS)},
        ),
    ]
    active_runs: Annotated[int | None, Meta(description="Number of running runs; only with `active_runs`.")] = None
    pool: Annotated[str | None, Meta(description="The first such pool; only with `pool`.")] = None
    slots: Annotated[int | None, Meta(description="Its slots; absent if Airflow has no such pool.")] = None
    occupied: Annotated[int | None, Meta(description="How many of them are occupied.")] = None
    needed: Annotated[int | None, Meta(description="How many slots the task instance needs.")] = None


class RunAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of a run. A run that failed is not a failed request."""

    dag_id: DagId
    dag_run_id: DagRunId
    state: Annotated[str | None, Meta(description="State of the run, which may still be running.")]
    outcome: Annotated[
        Literal["result", "failure", "none", "pending"],
        Meta(
            description=(
                "`none` if there is neither a result nor a failure (see `reason`), `pending` if the outcome is not"
                " known yet."
            )
        ),
    ]
    reason: NoOutcomeReason = None
    task_id: SkippedTaskId = None
    results: Annotated[
        dict[str, msgspec.Raw] | None,
        Meta(description="JSON value by task; of a mapped task a list by `map_index`."),
    ] = None
    references: Annotated[
        dict[str, Reference] | None, Meta(description="By task, where to get a value that is too large to be sent.")
    ] = None
    map_indexes: Annotated[
        dict[str, list[int]] | None,
        Meta(
            description=(
                "By mapped task, the `map_index` of each value of its list. Only for tasks whose list lacks indexes,"
                " because instances were skipped."
            )
        ),
    ] = None
    withheld: Annotated[bool, Meta(description="Whether values are left out because the caller may not read them.")] = (
        False
    )
    failure: Annotated[FailureInfo | None, Meta(description="Why there will be no result.")] = None
    tasks: Annotated[
        dict[str, int] | None, Meta(description="Number of task instances by state, while the outcome is pending.")
    ] = None
    waiting: Annotated[
        WaitingInfo | None, Meta(description="Why the run does not proceed, while the outcome is pending.")
    ] = None


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was set to fail."""

    dag_id: DagId
    dag_run_id: DagRunId
    state: Annotated[str, Meta(description="State of the run now. It is not `failed` while teardown tasks still run.")]


class InputReceipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for human input that was answered."""

    dag_id: DagId
    dag_run_id: DagRunId
    task_id: TaskId
    map_index: MapIndex
    answered_at: Annotated[datetime, Meta(description="When it was answered.")]
    by: Annotated[InputUser, Meta(description="The user who answered.")]
    chosen_options: Annotated[list[str], Meta(description="The options that were chosen.")]
    params_input: Annotated[dict[str, Any], Meta(description="JSON value by field of the form.")]
    iteration: Iteration = None


class InputAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An answer to a request for human input."""

    chosen_options: Annotated[
        list[str], Meta(description="One of the options, or several if the request permits it.", min_length=1)
    ]
    params_input: Annotated[dict[str, Any], Meta(description="JSON value by field of the form.")] = {}
    asked_at: Annotated[
        str | None,
        Meta(
            description=("`asked_at` of the request. The answer is refused with 409 if the task has asked again since.")
        ),
    ] = None

    def as_airflow_body(self) -> dict[str, Any]:
        """Return the body of Airflow's endpoint. Before 3.4, it ignores `request_created_at`."""
        body = {"chosen_options": self.chosen_options, "params_input": self.params_input}
        return body if self.asked_at is None else {**body, "request_created_at": self.asked_at}


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket. It opens one stream, once."""

    ticket: Annotated[str, Meta(description="Value of the query parameter `ticket`.")]
    expires_at: Annotated[datetime, Meta(description="When it expires, if it was not used.")]
    paths: Annotated[list[str], Meta(description="Paths that it is valid for, as they were requested.")]


class WaitLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the response to `wait`, in Airflow's format."""

    state: Annotated[str, Meta(description="State of the run.")]
    results: Annotated[
        dict[str, msgspec.Raw],
        Meta(description="Only in the last line: JSON value by task; of a mapped task a list by `map_index`."),
    ] = {}
    references: Annotated[
        dict[str, Reference], Meta(description="By task, where to get a value that is too large to be sent.")
    ] = {}


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process is running."""

    status: Annotated[Literal["ok"], Meta(description="Always `ok`.")]


class TailReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """State of the journal follower."""

    connected: Annotated[bool, Meta(description="Whether it is connected to PostgreSQL.")]
    doorbell: Annotated[
        bool, Meta(description="Whether it receives notifications (NOTIFY). Otherwise it polls the journal.")
    ]


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether this server can serve complete and live streams."""

    status: Annotated[Literal["ready", "unavailable"], Meta(description="`ready` if there are no problems.")]
    problems: Annotated[list[str], Meta(description="Why streams cannot be served.")]
    warnings: Annotated[list[str], Meta(description="What an operator should look at, although streams can be served.")]
    tail: Annotated[TailReadiness, Meta(description="State of the journal follower.")]


class Problem(TypedDict):
    """What is wrong with a request (RFC 9457)."""

    type: Annotated[str, Meta(description="A URN that identifies the kind of problem.")]
    title: Annotated[str, Meta(description="Short summary of the problem, the same for every occurrence.")]
    status: Annotated[int, Meta(description="HTTP status code of the response.")]
    detail: Annotated[str, Meta(description="What is wrong, and what would be right.")]


class Detail(TypedDict):
    """What is wrong with a request, in Airflow's format."""

    detail: Annotated[
        str | list[dict[str, msgspec.Raw]], Meta(description="A text, or a list of the parameters that are wrong.")
    ]


class RunItem(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a list."""

    dag_id: DagId
    run_id: RunId
    state: Annotated[str, Meta(description="State of the run.")]
    run_type: Annotated[
        str, Meta(description="How it was created: `manual`, `scheduled`, `backfill` or `asset_triggered`.")
    ]
    queued_at: Annotated[datetime | None, Meta(description="When it was last queued.")]
    start_date: Annotated[datetime | None, Meta(description="When it started; `null` before.")]
    end_date: Annotated[datetime | None, Meta(description="When it ended; `null` before.")]


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """The newest runs that the caller may read, newest first."""

    runs: Annotated[list[RunItem], Meta(description="The runs.")]
    cursor: Annotated[str, Meta(description="Cursor for `/api/v2/stream`, to follow all changes since this response.")]


class DagItem(msgspec.Struct, frozen=True, kw_only=True):
    """A DAG in a list."""

    dag_id: DagId
    description: Annotated[str | None, Meta(description="Description of the DAG.")]
    is_paused: Annotated[bool, Meta(description="Whether the DAG is paused. Its runs wait until it is unpaused.")]


class DagList(msgspec.Struct, frozen=True, kw_only=True):
    """The DAGs that the caller may read, sorted by id."""

    dags: Annotated[list[DagItem], Meta(description="The DAGs.")]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a page needs to know before the user has signed in."""

    signed_in: Annotated[
        bool, Meta(description="Whether the browser sends a credential that this server uses; it may be invalid.")
    ]
    airflow_ui_url: Annotated[
        str | None, Meta(description="Address of Airflow's UI, if this server is configured with it.")
    ]
    can_sign_in: Annotated[bool, Meta(description="Whether this server is configured with an Airflow to sign in to.")]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a DAG."""

    task_id: TaskId
    group_id: Annotated[str | None, Meta(description="The innermost task group around it.")]
    operator: Annotated[
        str,
        Meta(description="Operator, as Airflow's UI names it: `@task`, `BashOperator`; empty if it is not known."),
    ]
    is_mapped: IsMapped
    is_setup: Annotated[bool, Meta(description="Whether it is a setup task.")]
    is_teardown: Annotated[bool, Meta(description="Whether it is a teardown task.")]
    is_result: Annotated[
        bool, Meta(description="Whether it is a result task, if the caller does not name other result tasks.")
    ]


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A task group of a DAG."""

    group_id: Annotated[str, Meta(description="The group.")]
    parent_id: Annotated[str | None, Meta(description="The group around it, if there is one.")]
    is_mapped: IsMapped


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A dependency between two tasks."""

    source: Annotated[str, Meta(description="The upstream task.")]
    target: Annotated[str, Meta(description="The downstream task.")]


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """The DAG of a run, in the version that most of its task instances have."""

    dag_id: DagId
    run_id: RunId
    nodes: Annotated[list[Node], Meta(description="The tasks in topological order.")]
    groups: Annotated[list[NodeGroup], Meta(description="The task groups; each group comes before the groups within.")]
    edges: Annotated[list[Edge], Meta(description="The dependencies between the tasks.")]
