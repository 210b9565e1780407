"""Members that mean the same in several frames and bodies, and the bases of frames."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

Timestamp: TypeAlias = Annotated[datetime, Meta(tz=True)]
"""A time in UTC; RFC 3339 on the wire."""

# Members that mean the same in several frames.

DagId: TypeAlias = Annotated[str, Meta(description="The DAG.")]
RunId: TypeAlias = Annotated[str, Meta(description="The run, as Airflow names it.")]
TaskId: TypeAlias = Annotated[str, Meta(description="The task.")]
MapIndex: TypeAlias = Annotated[
    int, Meta(description="Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet.")
]
Iteration: TypeAlias = Annotated[
    int | None,
    Meta(description="Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops."),
]
TryNumber: TypeAlias = Annotated[int, Meta(description="Number of the try, counted from 1; 0 before the first try.")]
ClearNumber: TypeAlias = Annotated[int, Meta(description="How often the run was cleared.")]
PreviousState: TypeAlias = Annotated[str | None, Meta(description="The state before; `null` if there was none.")]
MapIndexes: TypeAlias = Annotated[
    dict[str, list[int]],
    Meta(description="By mapped task, the `map_index` of each value of its list. Only for tasks whose list has gaps."),
]

NO_OUTCOME_REASONS = ("task_skipped", "no_result_task", "run_ended")
"""Reasons for the outcome `none` that this version sends. Older clients must accept reasons that they do not know."""

NoOutcomeReason: TypeAlias = Annotated[
    str | None,
    Meta(
        description=(
            "Why the outcome is `none`; absent for other outcomes.\n\n"
            "`task_skipped`: the result tasks were skipped. `no_result_task`: no task is a result task. `run_ended`:"
            " the run ended as a success before the result tasks had a value, for example as it was marked as one."
        ),
        extra_json_schema={"enum": [*NO_OUTCOME_REASONS, None]},
    ),
]
SkippedTaskId: TypeAlias = Annotated[
    str | None, Meta(description="The first result task that was skipped; only with `task_skipped`.")
]


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all frames."""


class RunFrame(Frame, frozen=True, kw_only=True):
    """A frame about one DAG run."""

    dag_id: DagId
    run_id: RunId


class RowFrame(RunFrame, frozen=True, kw_only=True):
    """A frame that is made of one journal row."""

    seq: Annotated[
        int,
        Meta(
            description=(
                "Id of the row. Together with `type` it is unique in the stream, but for output of tasks, which has an"
                " `index`."
            )
        ),
    ]
    at: Annotated[Timestamp, Meta(description="When the row was written, inside Airflow's transaction; UTC.")]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where to get a value that is too large to be sent."""

    href: Annotated[str, Meta(description="Path below Airflow's address.")]
    bytes: Annotated[int, Meta(description="Size of the value as JSON text.")]
