"""What DAG files import, on Airflow 3.0 to 3.3: which of a DAG's tasks answers, and what its tasks say while they run.

Needs Airflow, and nothing else that this distribution's server needs.
"""

from __future__ import annotations

from stream_server.authoring.dag import DAG, dag, result_from
from stream_server.authoring.decorators import result_task
from stream_server.authoring.errors import (
    AuthoringError,
    CannotAnswer,
    ContradictingMarks,
    MisplacedMark,
    NothingToStream,
    UnknownResultTask,
)
from stream_server.authoring.output import emit, progress

__all__ = [
    "DAG",
    "AuthoringError",
    "CannotAnswer",
    "ContradictingMarks",
    "MisplacedMark",
    "NothingToStream",
    "UnknownResultTask",
    "dag",
    "emit",
    "progress",
    "result_from",
    "result_task",
]
