"""Imported by DAG files on Airflow 3.0 to 3.3: marks the result tasks of a DAG, streams the output of tasks.

Depends on Airflow only, not on the dependencies of the server.
"""

from __future__ import annotations

from stream_server.authoring.agent_output import emit_thinking, emit_tool_call, emit_tool_result
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
    "emit_thinking",
    "emit_tool_call",
    "emit_tool_result",
    "progress",
    "result_from",
    "result_task",
]
