"""What DAG files import, on Airflow 3.0 to 3.3: which of a DAG's tasks answers whoever waits for it.

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
    UnknownResultTask,
)

__all__ = [
    "DAG",
    "AuthoringError",
    "CannotAnswer",
    "ContradictingMarks",
    "MisplacedMark",
    "UnknownResultTask",
    "dag",
    "result_from",
    "result_task",
]
